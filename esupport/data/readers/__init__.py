"""One file a source: ``parse(raw, key) -> Conversation`` turns a raw record of that source into the project's record.

``raw`` is the decoded JSON of one record and ``key`` its name in the file, if it has one. A reader declares the raw
form as a pydantic model; a record that does not fit raises ``pydantic.ValidationError``, from which
:mod:`esupport.data.source` makes a fault that names file, line and field.
"""
