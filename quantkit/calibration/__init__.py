"""Calibration data: from any source to the very tensors that the model sees at inference.

    source --load_conversations--> Conversation --prepare(processor)--> Sample

`conversations` reads and checks rows (no torch), `images` decodes pictures, `prepare` runs the checkpoint's own
processor. Nothing here knows the model's insides.
"""

from quantkit.calibration.conversations import Conversation, load_conversations
from quantkit.calibration.prepare import PrepareOptions, Sample, fingerprint, load_processor, prepare

__all__ = ["Conversation", "PrepareOptions", "Sample", "fingerprint", "load_conversations", "load_processor", "prepare"]
