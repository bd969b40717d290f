"""`quantkit gguf` and `imatrix`: names, metadata, tokenizer and mixtures as llama.cpp reads them, and the runs."""
