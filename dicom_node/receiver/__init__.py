"""The receiver: a Storage and Verification SCP that keeps every acknowledged instance.

receiver = Receiver(settings, database, files)
receiver.start()
...
receiver.stop()
"""
