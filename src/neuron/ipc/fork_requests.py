"""What the service and the fork server say to each other; no torch.

Their socket keeps messages apart (SOCK_SEQPACKET). The server says :data:`READY` once, when it can
fork. A request is a rank in decimal and carries descriptors: the channel, stderr, the lines to
other ranks. It is answered by the new process's id in decimal, or by :data:`NO_PROCESS`.
"""

READY = b"ready"
NO_PROCESS = b"0"
MESSAGE_BYTES = 32
"""No message is longer."""
MAX_DESCRIPTORS = 253
"""Linux passes no more with one message."""
