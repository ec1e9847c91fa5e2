"""Writes tests/rows: parquet files as the hub's writer makes them. Run from the repository's root; pyarrow 26.0.1."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("content", pa.string()), ("role", pa.string())])


def s1k(first, last):
    numbers = range(first, last)
    return pa.table(
        {
            "question": [f"What is {i} + 1?" for i in numbers],
            "solution": [str(i + 1) for i in numbers],
            "cot_type": ["math"] * len(numbers),
            "attempt": [f"It is {i + 1}." for i in numbers],
            "thinking_trajectories": [[f"One more than {i} is {i + 1}."] for i in numbers],
            "metadata": pa.array([None] * len(numbers), pa.string()),
        }
    )


for shard, (first, last) in enumerate([(0, 7), (7, 12)]):
    pq.write_table(s1k(first, last), f"tests/rows/hub/data/train-{shard:05}-of-00002.parquet", compression="snappy")

turns = [[{"content": f"What is {i} + 1?", "role": "user"}, {"content": str(i + 1), "role": "assistant"}] for i in range(8)]
messages = pa.table({"messages": pa.array(turns, pa.list_(TURN)), "num_tokens": [7] * 8})
pq.write_table(messages, "tests/rows/messages.parquet", compression="zstd", row_group_size=5, data_page_version="2.0")

rows = {
    "problem": ["What is 2 + 2?", "What is 3 + 3?", "What is 4 + 4?"],
    "solution": ["4", "6", "8"],
    "generations": [
        ["<think>\nFive?\n</think>\n\n5", "<think>\nFour.\n</think>\n\n4"],
        ["<think>\nSix.\n</think>\n\n6", "<think>\nSo six"],
        ["<think>\nNine.\n</think>\n\n9"],
    ],
    "correctness_math_verify": [[False, True], [False, False], [False]],
    "correctness_llama": [None, [True, False], None],
    "is_reasoning_complete": [[True, True], [True, False], [True]],
    "uuid": [b"\xff\x00", None, None],
    "score": [1.5, float("nan"), None],
    "messages": pa.array(turns[:3], pa.list_(TURN)),
}
pq.write_table(pa.table(rows), "tests/rows/open-r1.parquet", compression="snappy", use_compliant_nested_type=False)
pq.write_table(pa.table({"prompt": ["a"], "response": [None]}), "tests/rows/null.parquet", compression="none")
pq.write_table(pa.table({"prompt": ["a"], "response": ["b"]}), "tests/rows/gzip.parquet", compression="gzip")

# The library datasets writes the names of a column's classes beside the rows, which have their numbers.
names = ["Unlabeled", "not overruling", "overruling"]
features = {"Label": {"names": names, "_type": "ClassLabel"}}
raft = pa.table({"Sentence": ["It stands.", "It falls.", "No."], "ID": pa.array([0, 1, 2], pa.int32()), "Label": [1, 2, 2]})
raft = raft.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
pq.write_table(raft, "tests/rows/raft.parquet", compression="snappy")
