"""Publishing a variant: nothing without a passing report of these very files, and all of it in one commit.

    check   what passes as a report      plan   which files go, with sizes, hashes and the commit's words
    hub     the Hugging Face hub         run    the steps in their order

Only `huggingface_hub` reaches the network, with its own rules (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET) and its
own token: HF_TOKEN or the stored login.
"""
