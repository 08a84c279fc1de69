"""Tell by the name of a value whether it is a secret: `api_key` is, `num_tokens` is not."""

from __future__ import annotations

import functools
import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Written as one word, since names come as api_key, apiKey, API-KEY and apikey.
_SECRETS = _words("""
    password passwords passwd pwd passphrase passcode secret secrets credential credentials connectionstring connstr
    dbpass smtppass mailpass ftppass userpass mysqlpass pgpass redispass
    apikey apikeys accesskey accesskeys privatekey privatekeys secretkey authkey accountkey sharedkey signingkey
    encryptionkey masterkey sshkey subscriptionkey storagekey servicekey
    authtoken authtokens accesstoken accesstokens refreshtoken refreshtokens apitoken apitokens idtoken bearertoken
    sessiontoken securitytoken
""")
"""Words that always name a secret, unless the words after them are listed as an exception."""

_SECRETS_AT_THE_END = _words("token auth authorization bearer jwt cookie cookies")
"""These have other meanings: token_mixer, auth_domain. They name a secret where they are the last word."""

_QUALIFIERS = re.compile(r"\d+|v\d+|value|string|str|text|header|old|new|prod|production|dev|test|staging|plain|base64")
"""May stand behind a name and leave its meaning."""

_NOT_THE_SECRET = _words("""
    file files filename path paths dir directory folder url uri endpoint host hostname port name names type kind class
    size length len dim dims id ids index count counts number num min max limit limits budget rate level method mode
    scheme provider backend policy required enabled enable disabled expiry expires expiration ttl timeout manager store
    rotation sock socket algorithm embedding embeddings embed embedder mixer mixing encoder decoder env variable var
""")
"""What follows a word for a secret and says that something about it is meant."""

_PARTS_OF_MODELS = _words("""
    pad eos bos mask unk sep cls special class pool image img audio video speech start end stop begin first last next
    prefix suffix prompt text word vocab register query latent patch object time separator padding unknown additional
    distill delimiter placeholder eot
""")
"""Before `token` they make it a part of a text or of a model."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MOST_WORDS = 2  # of a term above
_END = 200  # what of a name is looked at, as texts hold longer words without spaces


def is_secret_name(name: str) -> bool:
    """Return whether a value with this name is a secret, as ``api_key``, ``hub.accessToken`` or ``--db-password``.

    Args:
        name: of a key, an argument or a variable, in any spelling; several levels joined by dots or slashes are fine.
    """
    return _is_telling(name[-_END:])


@functools.lru_cache(4096)
def _is_telling(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    return any(
        _names_secret(words, start, end)
        for start in range(len(words))
        for end in range(start + 1, min(start + _MOST_WORDS, len(words)) + 1)
    )


def _names_secret(words: list[str], start: int, end: int) -> bool:
    """Return whether the words from start to end name a secret, between those that stand around them."""
    term, after = "".join(words[start:end]), words[end:]
    if term in _SECRETS:
        return not _NOT_THE_SECRET.intersection(after)
    if term not in _SECRETS_AT_THE_END or not all(_QUALIFIERS.fullmatch(word) for word in after):
        return False
    return not (term == "token" and start > 0 and words[start - 1] in _PARTS_OF_MODELS)
