"""Servers that speak OpenAI's protocol, started here and asked what the model card shows its readers.

    requests   the card's requests, as data: the card and the check show and send the same
    picture    the picture that two of them ask about, and a loopback address for it
    process    a server as a group of processes: started, waited for, stopped whatever happens
    runtimes   `transformers serve`, vLLM, llama-server: how each is started
    ask        the requests through the `openai` client
    reference  what Transformers makes of the same messages, and how far from it an answer is
    judge      the rule for each request
    record     runtimes.json
    check      all of it, one after the other

Nothing is imported here: `requests` and `record` need neither torch nor the client.
"""
