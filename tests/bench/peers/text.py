"""Trains and evaluates a BERT checkpoint on texts with PyTorch and PEFT, for `make bench PEERS=PYTHON`.

usage: text.py CHECKPOINT TRAIN TEST [--steps 300] [--batch 8] [--lr 1e-3] [--evaluate 1000] [--threads 2]
TRAIN and TEST are JSON Lines with the keys text and label, or CSV without a header: class, title, description.

LoRA r=8, alpha 16, on query and value; the head is trained; batches are padded to their longest text, 128 tokens at most.
Prints one line of JSON: examples_per_second (without the first two steps), evaluate_examples_per_second, accuracy, peak_rss_bytes.
"""

import argparse
import csv
import json
import random
import time

import torch
import transformers
from step import WARM_UP, peak_rss_bytes, with_lora
from tokenizers import Tokenizer

MAX_TOKENS = 128
EVALUATED_TOGETHER = 32


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        if path.endswith(".jsonl"):
            rows = [json.loads(line) for line in file]
            return [(row["label"], row["text"]) for row in rows]
        return [(row[0], ". ".join(row[1:])) for row in csv.reader(file)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--evaluate", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    draw = random.Random(0)

    train, test = read(options.train), read(options.test)
    numbers = {label: at for at, label in enumerate(sorted({label for label, _ in train + test}))}
    test = test[: options.evaluate]
    tokenizer = Tokenizer.from_file(f"{options.checkpoint}/tokenizer.json")
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    model = with_lora(transformers.BertForSequenceClassification.from_pretrained(
        options.checkpoint,
        num_labels=len(numbers),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
    ))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=options.lr)

    def batch_of(rows):
        encoded = tokenizer.encode_batch([text for _, text in rows])
        ids = torch.tensor([row.ids for row in encoded])
        mask = torch.tensor([row.attention_mask for row in encoded])
        return {"input_ids": ids, "attention_mask": mask}, torch.tensor([numbers[label] for label, _ in rows])

    model.train()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        inputs, labels = batch_of(draw.sample(train, options.batch))
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)

    model.eval()
    right, start = 0, time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(test), EVALUATED_TOGETHER):
            inputs, labels = batch_of(test[at : at + EVALUATED_TOGETHER])
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    counted = seconds[WARM_UP:]
    print(json.dumps({
        "examples_per_second": options.batch * len(counted) / sum(counted),
        "evaluate_examples_per_second": len(test) / (time.perf_counter() - start),
        "accuracy": right / len(test),
        "peak_rss_bytes": peak_rss_bytes(),
    }))


if __name__ == "__main__":
    main()
