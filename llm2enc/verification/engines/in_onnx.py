"""A file of ONNX in ONNX Runtime, with the tokenizers library alone: what a server without torch does."""

from typing import Any

import onnxruntime
from graph import Graph
from reference import Job, answer


def main() -> None:
    job = Job()
    session: Any = onnxruntime.InferenceSession(job.file, providers=["CPUExecutionProvider"])

    def run(ids, mask):
        return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]

    graph = Graph(job, run)
    answer(job, onnxruntime.__version__, graph.embed, graph.ids, notes=[], normalizes=True)


main()
