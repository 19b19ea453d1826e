"""The RDMA transport: the same frames, their payload moved by the NIC.

Every RDMA connection is a TCP connection that a queue pair was attached to. Over TCP the queue pair
is brought up (ConnectQueuePair, then one RDMA_LINK frame); with it both ends notice that the other
has gone; and over it goes what the NIC cannot move: a reply larger than its room, memory that
cannot be registered. When the queue pair fails the connection ends, on both sides, and whoever has
lost a request asks again on another one, over TCP alone for a while.

    request   SEND of the frame, with where its body lies and where the reply's may go; the server
              pulls the body with RDMA READ, as much at once as it permits itself
    reply     RDMA WRITE into the room, then SEND of the frame; small ones inline in the SEND. A
              client permits so many bytes to be on their way to it: beyond that a server says
              READY and waits to be told to GO_ON

messages.py has the format, flow.py the rules, inventory.py which port leads where: no I/O in these.
link.py is what both ends have in common; client.py and serving.py are the ends. Devices are reached
through verbs.py, which pyverbs_device.py fulfils; pyverbs_manager.py brings up iWARP's queue pairs.
"""
