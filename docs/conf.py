"""How Sphinx builds these pages: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import inspect
import re

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import trio_wt

project = "trio_wt"
author = "trio_wt contributors"
project_copyright = f"2026, {author}"
version = release = trio_wt.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "code"]

# `name` in a docstring is a Python object. A reference that leads nowhere is an error, unless it
# leads out of this package.
default_role = "py:obj"
nitpicky = True
_ALIASES = [
    "Address",
    "Filter",
    "HeadersLike",
    "Key",
    "Listener",
    "Message",
    "OnRequest",
    "Origins",
    "Parameters",
    "ServerTLSSource",
    "SessionHandler",
    "WebSocketHandler",
]
_ELSEWHERE = (
    r"(collections|contextlib|cryptography|logging|os|random|re|socket|ssl|trio|typing|urllib)\..*"
)
_BUILT_IN = "str|bytes|int|float|bool|None|memoryview|bytearray|.*Error|ClassVar"
nitpick_ignore_regex = [
    ("py:.*", _ELSEWHERE),
    ("py:.*", _BUILT_IN),
    ("py:.*", "|".join(_ALIASES)),
    ("py:.*", r"trio_wt\._.*\.(T|StreamT|(Quic|WebTransport)?SettingsKwargs)|TypeAliasForwardRef"),
    ("py:.*", r"trio_wt\.app\._.*\.[A-Z]\w*|T|TypeForm"),
    # attributes that a class says in its docstring
    ("py:obj", "rsv"),
    # `WebSocket.send`, from where the settings are
    ("py:obj", "send"),
    # the module
    ("py:obj", "socket"),
]

autodoc_member_order = "bysource"
autodoc_type_aliases = {name: name for name in _ALIASES}
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"trio_wt {version}"
html_copy_source = False

# Classes whose objects the package makes: how it makes them is nobody's business.
_MADE_HERE = {
    "Attempt",
    "Connection",
    "Datagrams",
    "IncomingStreams",
    "QuicEndpoint",
    "QuicStatistics",
    "ReceiveMessageStream",
    "ReceiveStream",
    "Reconnect",
    "Request",
    "Response",
    "SendMessageStream",
    "SendStream",
    "SessionStatistics",
    "Statistics",
    "Stream",
    "WebSocket",
    "WebTransportConnection",
    "WebTransportSession",
    "app.AppStatistics",
    "app.CircuitStatistics",
    "app.ConcurrencyLimit",
    "app.ConcurrencyStatistics",
    "app.Context",
    "app.EndpointStatistics",
    "app.MessageStatistics",
    "app.Permit",
    "app.PoolStatistics",
    "app.Previous",
    "app.RateLimit",
    "app.RateLimitStatistics",
    "app.Serving",
    "app.State",
    "app.Subscription",
    "app.TopicStatistics",
    "testing.NetworkSocket",
    "testing.NetworkStatistics",
}


def tidy_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Show a signature the way it is used."""
    if signature is None:
        return None
    if name.removeprefix("trio_wt.") in _MADE_HERE:
        return "", None
    alias = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
    signature = alias.sub(r"\1", signature)
    returns = alias.sub(r"\1", returns) if returns else None
    signature = re.sub(r"<function (\w+)>", r"\1", signature).replace("<factory>", "Deflate()")
    if returns and inspect.isasyncgenfunction(inspect.unwrap(obj)):  # type: ignore[arg-type]
        returns = returns.replace("AsyncIterator", "AbstractAsyncContextManager")
        returns = returns.replace("collections.abc", "contextlib")
    return signature, returns


# Napoleon takes what stands before a colon in a property's docstring for its type.
_properties: dict[str, list[str]] = {}


def keep_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Before napoleon sees it."""
    if what == "property":
        _properties[name] = list(lines)


def restore_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """After napoleon has seen it."""
    if what == "property":
        lines[:] = _properties.pop(name)


def find_in_package(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Look for a bare name in `trio_wt` and `trio_wt.app`, wherever it is mentioned."""
    if node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    for room in ("trio_wt", "trio_wt.app"):
        target = f"{room}.{node['reftarget']}"
        found = python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)
        if found is not None:
            return found
    return None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", find_in_package)
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("autodoc-process-docstring", keep_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_docstring, priority=600)
