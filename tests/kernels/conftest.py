"""What the tests of all kernels need where there is no GPU."""

from __future__ import annotations

import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    _patch, _patch_all = interpreter._patch_lang_tensor, interpreter._patch_lang

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        """Numbers of the interpreter are arrays of one element, which numpy from 2.4 on no longer takes for a loop's bounds."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def _patch_lang(fn: Any) -> Any:
        """A launch patches the language, and a call of a device function what it sees of it beside; to patch all again takes a third."""
        seen = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        return _patch_all(fn) if any(tl.core.is_builtin(lang.load) for lang in seen) else interpreter._LangPatchScope()

    interpreter._patch_lang_tensor = _patch_lang_tensor
    interpreter._patch_lang = _patch_lang
