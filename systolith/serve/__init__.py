"""The OpenAI API over HTTP: requests are read and checked here, tokens come from an engine in a process of its own."""
