"""edgeship device runner: build, prove, time and inspect an engine on the machine it will run on.

    python3 edgeship_runner.pyz COMMAND [options]        Python 3.8+, standard library and the device's own SDK

Every command prints JSON, one object a line, to stdout; logs go to stderr. Lines before the last are
{"event": "progress", "stage", "elapsed_s", ...}; the last is {"event": "result", "command", "ok", "runner", ...}.
With "ok": false it has "error": {"code", "message", "cause", "cure"}. "fake": true is on every result made with
a fake SDK. Keys carry their unit (_ms, _s, _mw, _mj, _bytes, _hz, _c); what cannot be known is null.

Exit codes: 0 done; 1 failed (see "error"); 2 wrong command line; 3 ran, but the verdict is negative (selftest,
evaluate with --top1-min); 75 another build holds the lock (try again later).

probe     [--root DIR] [--disk DIR] [--sdk MODULE]
          -> "facts": {"arch", "os", "python", "cpu", "jetson" (null elsewhere), "power", "clocks", "rails",
             "thermal", "memory", "disk", "sdk"}, "backends": {"tensorrt"|"openvino"|"onnxruntime":
             {"available", "version", "precisions", "cause", "cure"}}, "best": backend name or null,
             "problems": [{"code", "cause", "cure"}]
build     --graph G.onnx --out ENGINE [--backend B] [--precision int8|fp16|fp32] [--cache DIR] [--shape N,C,H,W]
          [--profile MIN:OPT:MAX (batches)] [--workspace-mib M] [--optimization-level 0..5] [--strongly-typed]
          [--threads T] [--lock-timeout-s S] [--timeout-s S] [--force]
          Writes ENGINE and ENGINE.json (the sidecar) atomically; the same key is reused, never built twice.
          -> "engine", "sidecar", "key", "reused", "build_s", "size_bytes", "engine_sha256", "graph_sha256",
             "backend", "version", "warnings": [...]
selftest  --engine ENGINE --golden DIR [--cosine-min 0.99] [--top1-min 0.99] [--latency-max-ms L] [--threads T]
          DIR holds golden.json {"shape": [N,C,H,W], "classes": K, "inputs": "inputs.f32", "logits": "logits.f32",
          "sha256": {file: digest}}, raw little-endian float32 (targets.runner.write_golden writes it).
          -> "verdict": "pass"|"fail", "images", "cosine_min", "cosine_mean", "top1_agreement",
             "largest_difference", "latency_ms" (median wall), "reasons": [...]
time      --engine ENGINE [--engine ENGINE ...] [--batch N] [--warmup-ms 200] [--duration-s 3] [--iterations 10]
          [--rounds 3] [--threads T] [--cuda-graph] [--no-transfers] [--samples]
          Several engines are interleaved (A B C A B C). -> "timings": one per engine: {"engine", "batch", "runs",
          "wall_ms"|"gpu_ms"|"h2d_ms"|"d2h_ms"|"enqueue_ms"|"latency_ms": {"min","mean","median","p90","p95","p99",
          "max","cv"} or null, "throughput_ips", "included", "energy_mj" (an inference), "samples_ms" with
          --samples}, "before"/"after": clocks, temperatures, counters; "power_mw"; "throttled": true|false|null,
          "marks": why the run should not be trusted (throttled, clocks changed, spread above 5 %)
evaluate  --engine ENGINE --images SET [--reference logits.f32] [--limit N] [--logits-out F] [--top1-min T] [--threads T]
          SET is one packed file (magic ESPACK1, see evaluate.py). -> "images", "labelled", "top1", "top5",
          "agreement" (top-1 with the reference logits), "sqnr_db", "seconds"
infer     --engine ENGINE --input x.f32 --out y.f32 [--threads T] -> "images", "shape"
inspect   --engine ENGINE [--out FILE] -> "layers" (or "file"), "bindings", "versions"; as the runtime tells it

--root DIR reads the device's files below DIR instead of / (a mounted image, or a test). --sdk MODULE imports
MODULE in place of `tensorrt`. Nothing runs as root and nothing is changed outside the named files.
"""
