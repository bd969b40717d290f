"""Asking a variant: a conversation about pictures and clips with one model, answers as they come.

    options     what decides an answer, besides the question
    parts       what a question refers to, as parts of a message
    dialogue    a model's turns so far
    engines     which engine runs a folder or file: `local` (Transformers), `llamacpp` (GGUF)
    reply       what an engine gives back, reasoning told apart from the answer

Pictures and clips are opened, and prompts made, by `quantkit.calibration`; models are loaded by `quantkit.verify`.
"""

from quantkit.chat.dialogue import Dialogue
from quantkit.chat.engines import open_engine
from quantkit.chat.parts import question, reference
from quantkit.chat.reply import Engine, Reply
from quantkit.recipe import ChatOptions

__all__ = ["ChatOptions", "Dialogue", "Engine", "Reply", "open_engine", "question", "reference"]
