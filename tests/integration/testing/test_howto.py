"""The examples of docs/howto/test-with-the-simulator.md run as they stand there."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from headway.testing import Behaviour, Fault, ProviderSimulator

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "howto" / "test-with-the-simulator.md"


async def test_the_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert len(examples) == 6
    async with ProviderSimulator({"support": Behaviour()}) as gateway:
        names: dict[str, Any] = {"gateway_url": gateway.base_url, "api_key": "any"}
        for example in examples:
            code = compile(example, str(_PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
        assert names["summary"].answers == gateway.counts.answered > 100
    assert names["seconds"] >= 0


def test_every_fault_is_described() -> None:
    text = _PAGE.read_text()
    assert [fault.name for fault in Fault if f"`{fault.name}`" not in text] == []
