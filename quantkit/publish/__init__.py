"""Publishing a variant: nothing without a passing report of these very files, and all of it in one commit.

    check   what passes as a report      plan   which files go, with sizes, hashes and the commit's words
    hub     the Hugging Face hub         run    the steps in their order

Only `huggingface_hub` reaches the network, with its own rules (HF_ENDPOINT, HF_HUB_OFFLINE) and its own token: HF_TOKEN
or the stored login. Large files go through Xet where that is installed, which sends only what the hub lacks, and else
as LFS objects (HF_HUB_DISABLE_XET=1); the tests know the latter, as a hub on this machine cannot speak Xet.
"""
