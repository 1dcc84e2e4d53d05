"""What `headway init` writes."""

from __future__ import annotations

_FILE = """\
# Headway's configuration. `headway check` checks it, `headway apply` applies it.
# All keys: docs/reference/configuration.md and docs/reference/policies.md

# LLM endpoints. Secrets are named, never written here: env:NAME or file:/path.
deployments:
  gpt-4o-mini:
    provider: openai
    model: gpt-4o-mini
    api_key: env:OPENAI_API_KEY
    usd_per_million_tokens: {input: 0.15, output: 0.60}
    timeouts: {first_token: 30s, total: 5m}

  # Any server that speaks OpenAI's API: vLLM, Ollama, llama.cpp.
  # local:
  #   provider: openai
  #   base_url: http://127.0.0.1:11434/v1
  #   model: llama3.2

# Documents to answer from: `headway index build handbook` makes the version handbook@1 of what is in the lake then.
# indexes:
#   handbook:
#     lake: file:./docs  # or s3://bucket/folder, abfs://container@account.dfs.core.windows.net/folder
#     include: ["**/*.md", "**/*.html", "**/*.pdf"]

# What clients call as `model`.
applications:
  support:
    unit: conversation   # a conversation stays on one release
    record: full         # or metadata: everything but prompts and answers
    retention: 30d
    policy: manual       # you set the share: `headway share support RELEASE 10%`; or `careful`, see below
    # The release you want. Change it and apply: the new release is rolled out as the policy says.
    release:
      deployment: gpt-4o-mini
      prompt: prompts/support.j2
      parameters: {temperature: 0.3}
      client_may_override: [temperature]
      # index: handbook@1  # answer from that version, and cite it; naming the next one is a rollout like any other
      # top_k: 5

# How releases are rolled out: as fast as the evidence allows, and back when it turns.
policies:
  careful:
    stages: [1%, 5%, 25%, 50%, {share: 100%, approve: true}]  # a person releases the last step
    # What a new release is for. The margin is the largest loss you accept, here 5 percentage points.
    goal: {metric: thumbs_up, margin: 5pp}
    # What must not get worse: at most 1.5 times the errors, a p95 latency 1.2 times as long, 1.1 times the cost.
    guardrails:
      - {metric: error_rate, ratio: 1.5}
      - {metric: latency_p95, ratio: 1.2}
      - {metric: cost, ratio: 1.1}
    alpha: 0.05          # chance that a good release is rolled back
    beta: 0.05           # chance that one worse than a margin gets to 100%
    max_duration: 14d
    # While too little is recorded: what you expect of the release that you have.
    # baselines: {thumbs_up: {level: 70%}, latency_p95: {level: 4s}}

# Feedback beside thumbs_up, stars, comment and correction, which are built in.
metrics:
  resolved: {kind: binary}   # did the answer solve the problem?
"""

_PROMPT = """\
You are the support assistant of a software company. Today is {{ today }}.
Answer in at most five sentences. Say so when you do not know.
"""

STARTER_FILES = {"headway.yaml": _FILE, "prompts/support.j2": _PROMPT}
