"""Layer archives: decompression, tar reading, application and creation, in worker processes.

Rule: nothing in this package that a worker imports may import grpc, google.protobuf or asyncio.
"""
