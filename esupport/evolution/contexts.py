"""Which contexts a round works on: step 1 of the method, C_n of the training side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from esupport.config.schema_evolve import Contexts
from esupport.data.conversation import Conversation
from esupport.data.preference import Context
from esupport.errors import UserError
from esupport.rendering.contexts import context_of, spread
from esupport.rendering.template import Renderer


def choose(
    conversations: Sequence[Conversation], choice: Contexts, rounds: int, renderer: Renderer
) -> tuple[list[list[Context]], dict[str, str]]:
    """The contexts of each round, a pure function of conversations and choice, and the replies of the data to them, by key.

    No more conversations are read than it takes.

    Raises:
        UserError: a round is left without any.
    """
    order = np.random.default_rng(choice.seed).permutation(len(conversations)).tolist()
    chosen, human, taken = [], dict[str, str](), 0
    for number in range(rounds):
        # of what the rounds before have left, at most an even part: where there is enough, a round is the same for any number
        # of rounds after it
        even = slice(taken, taken + (len(order) - taken) // (rounds - number))
        share = order[even] if choice.over_rounds == "disjoint" else order
        contexts: list[Context] = []
        for index in share:
            if choice.per_round is not None and len(contexts) >= choice.per_round:
                break
            taken += 1
            conversation = conversations[index]
            found = _of_conversation(conversation, choice, renderer)
            human |= {context.key: conversation.turns[context.turn].text for context in found}
            contexts += found
        if not contexts:
            why = (
                "max_tokens: no context fits, or none has first_turn seeker turns before it"
                if share
                else "over_rounds: there are fewer conversations than rounds; use same"
            )
            raise UserError(f"contexts.{why} (round {number + 1})")
        twice = [key for key, count in Counter(context.key for context in contexts).items() if count > 1]
        if twice:  # drafts, reflections and pairs are told apart by it
            raise UserError(f"data: two conversations on the training side have the id {twice[0].rpartition('/')[0]}")
        chosen.append(contexts[: choice.per_round])
    return chosen, human


def _of_conversation(conversation: Conversation, choice: Contexts, renderer: Renderer) -> list[Context]:
    asked = [
        turn
        for turn in conversation.supporter_turns()
        if sum(t.role == "seeker" for t in conversation.turns[:turn]) >= choice.first_turn
    ]
    found = {turn: context_of(conversation, turn, renderer, choice.max_tokens) for turn in asked}
    fitting = [turn for turn, context in found.items() if context and len(context.turns) == turn]
    candidates = fitting or [turn for turn, context in found.items() if context]
    count = choice.per_conversation
    if choice.turns == "first":
        picked = candidates[:count]
    elif choice.turns == "last":
        picked = candidates[-count:]
    elif choice.turns == "random":
        draw = np.random.default_rng([choice.seed, *conversation.id.encode()])
        picked = sorted(draw.permutation(candidates)[:count].tolist())
    else:
        picked = spread(candidates, count)
    return [context for turn in picked if (context := found[turn])]
