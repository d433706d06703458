"""Times PyTorch's training step on random tokens, with LoRA by PEFT, for `make bench PEERS=PYTHON`.

usage: step.py SHAPE WAY [--batch 8] [--tokens 128] [--steps 8] [--threads 2]
SHAPE: minilm, base or large. WAY: train, checkpoint (layers are computed again), skip (a random half of the layers) or evaluate.

Prints one line of JSON: median_s, min_s (seconds of a step) and peak_rss_bytes. Two steps to warm up are not counted.
"""

import argparse
import json
import random
import resource
import statistics
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model

# Layers, width, heads, width of the feed-forward part.
SHAPES = {"minilm": (6, 384, 12, 1536), "base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}
WARM_UP = 2
CLASSES = 4


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_lora(model):
    model.config._attn_implementation = "sdpa"
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    return get_peft_model(model, lora)


def model_of(shape):
    layers, width, heads, inner = SHAPES[shape]
    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return with_lora(transformers.BertForSequenceClassification(config))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("way", choices=["train", "checkpoint", "skip", "evaluate"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)

    model = model_of(options.shape)
    encoder = model.base_model.model.bert.encoder
    layers = list(encoder.layer)
    if options.way == "checkpoint":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(options.way != "evaluate")
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=5e-4)
    mask = torch.ones(options.batch, options.tokens, dtype=torch.long)

    def step():
        ids = torch.randint(1000, 30000, (options.batch, options.tokens))
        labels = torch.randint(0, CLASSES, (options.batch,))
        if options.way == "skip":
            kept = sorted(random.sample(range(len(layers)), len(layers) // 2))
            encoder.layer = torch.nn.ModuleList([layers[at] for at in kept])
        start = time.perf_counter()
        if options.way == "evaluate":
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
        else:
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
        return time.perf_counter() - start

    seconds = [step() for _ in range(WARM_UP + options.steps)][WARM_UP:]
    print(json.dumps({
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "peak_rss_bytes": peak_rss_bytes(),
    }))


if __name__ == "__main__":
    main()
