"""What `headway init` writes."""

from __future__ import annotations

_FILE = """\
# Headway's configuration. `headway check` checks it, `headway apply` applies it.
# All keys: docs/reference/configuration.md

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

# What clients call as `model`.
applications:
  support:
    unit: conversation   # a conversation stays on one release
    record: full         # or metadata: everything but prompts and answers
    retention: 30d
    # The release you want. Change it and apply: the new release waits until you give it a share,
    # with `headway share support RELEASE 10%`.
    release:
      deployment: gpt-4o-mini
      prompt: prompts/support.j2
      parameters: {temperature: 0.3}
      client_may_override: [temperature]

# Feedback beside thumbs_up, stars, comment and correction, which are built in.
metrics:
  resolved: {kind: binary}   # did the answer solve the problem?
"""

_PROMPT = """\
You are the support assistant of a software company. Today is {{ today }}.
Answer in at most five sentences. Say so when you do not know.
"""

STARTER_FILES = {"headway.yaml": _FILE, "prompts/support.j2": _PROMPT}
