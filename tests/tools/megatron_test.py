#!/usr/bin/env python3
"""`dropcycle preprocess --from-megatron` reads what this small writer of Megatron-LM's .idx and .bin writes, and names
what is wrong with files that are damaged or hostile.

    megatron_test.py DROPCYCLE
"""
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

TYPES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}
failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message, flush=True)


def index_bytes(documents, type_code, magic=b"MMIDIDX\x00\x00", version=1):
    """`documents`: of each the lengths of its sequences."""
    size = struct.calcsize("<" + TYPES.get(type_code, "i"))
    lengths = [length for document in documents for length in document]
    pointers, bounds = [], [0]
    for length in lengths:
        pointers.append(pointers[-1] + lengths[len(pointers) - 1] * size if pointers else 0)
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    return (magic + struct.pack("<QBQQ", version, type_code, len(lengths), len(bounds)) +
            struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers) +
            struct.pack(f"<{len(bounds)}q", *bounds))


def write(prefix, documents, type_code, index=None):
    """`documents`: of each the sequences, lists of ids."""
    ids = [token for document in documents for sequence in document for token in sequence]
    lengths = [[len(sequence) for sequence in document] for document in documents]
    pathlib.Path(f"{prefix}.bin").write_bytes(struct.pack(f"<{len(ids)}{TYPES[type_code]}", *ids))
    pathlib.Path(f"{prefix}.idx").write_bytes(index if index is not None else index_bytes(lengths, type_code))


def run(dropcycle, *arguments):
    return subprocess.run([str(word) for word in (dropcycle, *arguments)], capture_output=True, text=True)


def shown_documents(dropcycle, folder, prefix, count):
    """The ids of all documents, from `dropcycle inspect`, over all shards."""
    shown = []
    for shard in sorted(folder.glob(f"{prefix}-*.h5")):
        process = run(dropcycle, "inspect", shard, "--documents", count)
        expect(process.returncode == 0, process.stderr)
        verified = run(dropcycle, "verify", shard)
        expect(verified.returncode == 0, verified.stdout + verified.stderr)
        shown.append(process.stdout)
    return shown


def check_round_trip(dropcycle, folder, type_code):
    draw = random.Random(type_code)
    highest = {1: 255, 2: 127, 3: 32767, 8: 65535}.get(type_code, 99999)
    documents = [[[draw.randrange(highest + 1) for _ in range(draw.choice([0, 1, 3, 9]))]
                  for _ in range(draw.choice([0, 1, 1, 2, 5]))] for _ in range(25)] + [[[highest, 0, highest]]]
    write(folder / "data", documents, type_code)
    process = run(dropcycle, "preprocess", "--from-megatron", folder / "data", "--vocab-size", highest + 1, "--output",
                  folder / f"shard{type_code}", "--source", "megatron")
    expect(process.returncode == 0, f"type {type_code}: {process.stderr}")
    text = "".join(shown_documents(dropcycle, folder, f"shard{type_code}", len(documents)))
    joined = [[token for sequence in document for token in sequence] for document in documents]
    found = [(int(match[1]), [int(word) for word in match[2].split()])
             for match in re.finditer(r"^document \d+ \((\d+) tokens\): ?([\d ]*)$", text, re.MULTILINE)]
    expect(found == [(len(ids), ids) for ids in joined], f"type {type_code}: {found[:4]} for {joined[:4]}")


def check_large(dropcycle, folder):
    """More than one block of every table, a long document, several shards."""
    draw = random.Random(7)
    documents = [[[draw.randrange(1000) for _ in range(2)]] for _ in range(70000)] + [[[7] * 200000, [8] * 3]]
    write(folder / "large", documents, 8)
    process = run(dropcycle, "preprocess", "--from-megatron", folder / "large", "--vocab-size", 1000, "--output",
                  folder / "large", "--max-shard-bytes", 300000)
    expect(process.returncode == 0 and "documents   70001" in process.stdout and "0.340 million" in process.stdout,
           process.stdout + process.stderr)
    expect(len(shown_documents(dropcycle, folder, "large", 1)) >= 2, "several shards were expected")


def check_refusals(dropcycle, folder):
    good = [[[1, 2], [3]], [[4, 5, 6]]]
    lengths = [[2, 1], [3]]
    index = index_bytes(lengths, 4)
    header, tables = index[:34], index[34:]

    def patched(place, data):
        return index[:place] + data + index[place + len(data):]
    cases = [
        ("not Megatron's MMIDIDX", patched(0, b"X")), ("version 2, expected 1", patched(9, struct.pack("<Q", 2))),
        ("token type 7", patched(17, b"\x07")), ("token type 0", patched(17, b"\x00")), ("token type 200", patched(17, b"\xc8")),
        ("has at least 34", header[:20]), ("too few for", index[:-1]), ("too few for", patched(18, struct.pack("<Q", 2**61))),
        ("too few for", patched(26, struct.pack("<Q", 2**64 - 1))), ("1 bytes more", index + b"x"),
        ("modes of its sequences", index + b"\0\0\0"), ("no document bounds", header[:26] + struct.pack("<Q", 0) + tables[:36]),
        ("sequence 1 has -1 tokens", patched(38, struct.pack("<i", -1))),
        ("too few for the 2147483647 tokens of sequence 2", patched(42, struct.pack("<i", 2**31 - 1))),
        ("sequence 1 begins at byte 4", patched(54, struct.pack("<q", 4))),
        ("sequence 0 begins at byte -8", patched(46, struct.pack("<q", -8))),
        ("begins with sequence 1, expected 0", patched(70, struct.pack("<q", 1))),
        ("document 1 ends with sequence 1, expected 2 to 3", patched(86, struct.pack("<q", 1))),
        ("document 0 ends with sequence 99", patched(78, struct.pack("<q", 99))),
        ("1 of 3 sequences belong to no document", patched(86, struct.pack("<q", 2))),
    ]
    output = folder / "refused"
    arguments = ["preprocess", "--from-megatron", folder / "bad", "--vocab-size", 10, "--output", output]
    for message, content in cases:
        write(folder / "bad", good, 4, content)
        check_refusal(run(dropcycle, *arguments), 3, message)
    for message, documents in [("byte 8: token id 10, expected 0 to 9", [[[1, 2], [10]]]), ("token id -3", [[[-3]]]),
                               ("has no document", [])]:
        write(folder / "bad", documents, 4)
        check_refusal(run(dropcycle, *arguments), 3, message)
    write(folder / "bad", good, 4)
    tokens = (folder / "bad.bin").read_bytes()
    (folder / "bad.bin").write_bytes(tokens + b"\0\0\0\0")
    check_refusal(run(dropcycle, *arguments), 3, "28 bytes, but the sequences of")
    (folder / "bad.bin").write_bytes(tokens[:-1])
    check_refusal(run(dropcycle, *arguments), 3, "too few for the 3 tokens of sequence 2")
    (folder / "bad.bin").unlink()
    check_refusal(run(dropcycle, *arguments), 3, "bad.bin: can't be read")
    check_refusal(run(dropcycle, *arguments[:3], "--output", output), 2, "--tokenizer or --vocab-size")
    check_refusal(run(dropcycle, "preprocess", "--output", output), 2, "--from-megatron PREFIX")
    expect(not list(folder.glob("refused*")), f"left over: {list(folder.glob('refused*'))}")


def check_refusal(process, status, message):
    expect(process.returncode == status and message in process.stderr and process.stderr.strip().count("\n") == 0,
           f"expected status {status} and '{message}', got {process.returncode}: {process.stderr[:300]}")


def main():
    dropcycle = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="dropcycle-megatron-") as name:
        folder = pathlib.Path(name)
        for type_code in TYPES:
            check_round_trip(dropcycle, folder, type_code)
        check_large(dropcycle, folder)
        check_refusals(dropcycle, folder)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
