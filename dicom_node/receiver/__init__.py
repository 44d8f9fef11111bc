"""The receiver: a Storage and Verification SCP that keeps every acknowledged instance.

receiver = Receiver(settings, database, files)
receiver.start()
...
receiver.stop()
"""

from dicom_node.receiver.receiver import Receiver, serve

__all__ = ["Receiver", "serve"]
