"""A file of ONNX in ONNX Runtime, with the tokenizers library alone: what a server without torch does."""

import onnxruntime
from by_hand import Job, answer
from graph import Graph


def main() -> None:
    job = Job()
    session = onnxruntime.InferenceSession(job.form, providers=["CPUExecutionProvider"])

    def run(ids, mask):
        return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]

    graph = Graph(job, run)
    answer(job, onnxruntime.__version__, graph.embed, graph.ids, notes=[], normalizes=True)


main()
