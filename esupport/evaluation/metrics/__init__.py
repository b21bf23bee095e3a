"""Automatic metrics of replies against the human ones, prepared once and then valued on any resample of the replies.

Shares and similarities are fractions (BLEU 0.12, not 12). Where published figures rest on other definitions, these are there
under their own names: ``esconv_...`` as in Liu et al. 2021 (thu-coai), ``pesc_...`` as in NLPCC 2025 shared task 8.
"""
