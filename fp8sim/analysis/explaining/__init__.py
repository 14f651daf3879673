"""Why a kernel's output is what it is: hypotheses as data, which of them give exactly its bits, and what differs.

`verdicts` holds `explain`; `design` the inputs that separate what is still ambiguous; `cases` a case as a file.
"""
