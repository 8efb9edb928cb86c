"""Rules of thumb: schema, loader, and our own bank as JSONL files."""

from .loader import as_rule, check_rules, load_bank, load_general, read_rules, rules_digest
from .schema import AuthoredReply, Dialogue, Rule, Violation

__all__ = [
    "AuthoredReply",
    "Dialogue",
    "Rule",
    "Violation",
    "as_rule",
    "check_rules",
    "load_bank",
    "load_general",
    "read_rules",
    "rules_digest",
]
