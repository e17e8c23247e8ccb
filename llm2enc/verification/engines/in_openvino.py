"""A file of OpenVINO, with the tokenizers library alone."""

import openvino
from graph import Graph
from reference import Job, answer


def main() -> None:
    job = Job()
    # Without the hint a CPU that can compute in bfloat16 does so, and is off by several hundredths.
    model = openvino.Core().compile_model(job.file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(ids, mask):
        return model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]

    graph = Graph(job, run)
    notes = ["compiled with INFERENCE_PRECISION_HINT f32"]
    answer(job, openvino.__version__.partition("-")[0], graph.embed, graph.ids, notes=notes, normalizes=True)


main()
