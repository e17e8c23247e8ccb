"""What --overwrite takes away: everything that a run may have written, whatever its stages are called."""

import pytest

from llm2enc.conversion import run_directory
from llm2enc.training import OBJECTIVES


@pytest.mark.parametrize("objective", [*OBJECTIVES, "merge"])
def test_the_folder_of_every_stage_is_one_that_a_run_writes(objective: str) -> None:
    assert run_directory._WRITTEN.fullmatch(f"10-{objective}")
    assert not run_directory._WRITTEN.fullmatch(f"{objective}")
