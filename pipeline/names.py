"""Names that the model registry takes, so that a wrong one is said before a training begins."""

import re

_NAME = re.compile(r"\w(?:[\w -]{0,198}[\w-])?")
_ALIAS = re.compile(r"[\w-]{1,255}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)


def check_name(name: str, option: str = "model name") -> None:
    """Refuse a name that a registered model cannot have.

    MLflow keeps a model under the same name twice, and its two rules differ: only what both take
    is allowed.

    Args:
        name: Of the model.
        option: What the message calls it.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{option} is {name!r}, which cannot name a registered model; use letters, digits, _, "
            f"- and spaces within, at most 200 characters"
        )


def check_alias(alias: str, option: str = "alias") -> None:
    """Refuse an alias that MLflow does not take."""
    if not _ALIAS.fullmatch(alias):
        raise ValueError(
            f"{option} is {alias!r}; use letters, digits, _ and -, at most 255 characters"
        )
    if _RESERVED.fullmatch(alias):
        raise ValueError(
            f"{option} is {alias!r}, which MLflow keeps for itself, as latest and v1, v2 …; choose "
            f"another word, e.g. champion"
        )
