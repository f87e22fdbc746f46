"""Models behind an OpenAI-compatible server, such as Ollama, llama.cpp, LM Studio or vLLM.

    load_model("openai:http://localhost:11434/v1#qwen2.5vl:7b")
    load_model("openai:#MODEL")           the address is in OPENAI_BASE_URL

The weights are on the server, so nothing here needs torch. The key, if the server asks for one, is read from
OPENAI_API_KEY; it is sent to the server alone, and never shown or stored.
"""

from __future__ import annotations

from deltavlm.model.openai.model import load, read_spec

__all__ = ["load", "read_spec"]
