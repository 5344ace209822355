"""Masks known secrets in text that leaves the process: `redact(text)`.

For paths of errors, at the last place before text is kept or shown. It masks the values of secret
settings and of environment variables named like credentials, passwords in URLs and connection
strings, credentials in headers, keys of well-known forms, and the keys that requests were sent with
(`remember`). A caller who knows more secrets hands them in too: `redact(text, password)`. Masking
twice changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"
SHORTEST_SECRET = 6
"""Characters below which a value is too common to be looked for in any text; in a URL or a header
it is masked by its place.
"""
# Characters from which a value is masked within a word, too.
_SURE = 16

# What a name ends with: DB_PASSWORD, AccountKey and -cpassword are some, too.
_SECRET_FIELD = (
    r"(?:password|passwd|passphrase|pwd|secret"
    r"|(?:api|account|access)[_-]?key|(?:access|refresh|id|auth)[_-]?token)"
)
_SECRET_HEADER = (
    r"(?:x-api-key|api-key|x-goog-api-key|ocp-apim-subscription-key|x-auth-token|x-access-token"
    r"|x-amz-security-token|cf-aig-authorization|set-cookie|cookie)"
)
_VALUE = r"[^\s\"',;&<>\\)}\]]+"
# What stands between a name and its value in a header, a mapping or a list of pairs, as text or
# as the repr of bytes or of escaped JSON.
_BETWEEN = r"\\?[\"']?\s*[:=,]\s*(?:b?\\?[\"'])?"
_ASSIGNED = r"\\?[\"']?\s*[:=]\s*"
_QUOTED = r"(?:(?!\2|\n).){1,500}"
_QUERY_NAMES = rf"(?:{_SECRET_FIELD}|key|token|sig|signature|x-amz-[a-z-]+)"

_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", MASK),
        (rf"((?:proxy-)?authorization{_BETWEEN})(?:[a-z]+\s+)?{_VALUE}", rf"\1{MASK}"),
        (rf"(\b{_SECRET_HEADER}{_BETWEEN}){_VALUE}", rf"\1{MASK}"),
        # A word after "bearer" is a token only if it looks like one.
        (rf"(\bbearer\s+)(?=[^\s]{{0,200}}\d|[^\s]{{24}}){_VALUE}", rf"\1{MASK}"),
        # Bounded, as some others: no text makes the search take quadratic time.
        (r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,200}:)[^\s/]{1,500}@", rf"\1{MASK}@"),
        (rf"([?&]{_QUERY_NAMES}=)[^&\s\"'#]+", rf"\1{MASK}"),
        (rf"({_SECRET_FIELD}%3D)[^&\s\"'#]+", rf"\1{MASK}"),
        # What is in quotation marks goes to the closing one, and what is in a list of pairs with
        # semicolons to the next one; both may have spaces.
        (rf"({_SECRET_FIELD}{_ASSIGNED}(\\?[\"'])){_QUOTED}(?=\2)", rf"\1{MASK}"),
        (rf"({_SECRET_FIELD}\s*=\s*)[^\s\"';][^\"';\n]{{0,200}}(?=;)", rf"\1{MASK}"),
        (rf"({_SECRET_FIELD}\\?[\"']?\s*=\s*\\?[\"']?){_VALUE}", rf"\1{MASK}"),
        (rf"({_SECRET_FIELD}\\?[\"']\s*:\s*\\?[\"']){_VALUE}", rf"\1{MASK}"),
    )
)
_KEY_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|rk|pk|gsk|hf|xai|pplx|r8|nvapi|pnu|pnb|ghp|gho|ghs|github_pat|glpat|xox[abprs])[-_]"
    r"(?=[\w*-]{0,200}[\d*])[\w*-]{8,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
    r")"
)


_CREDENTIAL_HEADERS = (
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
)
_MOST_REMEMBERED = 64

# Keys that this process has sent, the latest last: a key given in code is in no setting, and an
# answer that repeats it may become an error's text anywhere. Replaced as a whole, for threads.
_remembered: tuple[str, ...] = ()


def remember(headers: Mapping[str, str]) -> None:
    """Mask from now on the credentials that a request is sent with."""
    global _remembered
    for name in _CREDENTIAL_HEADERS:
        key = headers.get(name, "").rpartition(" ")[2]  # of "Bearer KEY"
        if key and key not in _remembered:
            _remembered = (*_remembered, key)[-_MOST_REMEMBERED:]


def redact(text: str, *secrets: str) -> str:
    """The text with each known secret masked by `***`.

    Args:
        secrets: More values to mask, besides those of settings, environment and requests.
    """
    # Imported here: pydantic-settings takes its time, and a run without errors needs none of this.
    from .settings import secret_values

    known = {*secrets, *_remembered, *secret_values()}
    forms = {form for value in known for form in _written(value) if len(form) >= SHORTEST_SECRET}
    if forms:
        # The longest first: one may be the beginning of another.
        longest_first = sorted(forms, key=len, reverse=True)
        text = re.sub("|".join(map(_pattern_of, longest_first)), MASK, text)
    return redact_patterns(text)


def redact_patterns(text: str) -> str:
    """The text without what looks like a secret; no settings are read."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _KEY_FORMS.sub(MASK, text)


def _pattern_of(form: str) -> str:
    if len(form) >= _SURE:
        return re.escape(form)
    # "postgres" as a password must not mask the scheme of each "postgresql://".
    return rf"(?<!\w){re.escape(form)}(?!\w)"


def _written(value: str) -> Iterable[str]:
    """A secret as it may stand in a text: plain, in a URL, in JSON or a repr."""
    value = value.strip()
    return {
        value,
        unquote(value),
        unquote_plus(value),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
    }
