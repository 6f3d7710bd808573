"""What server and client must agree on.

Nothing here talks to the other side. The one use of the network are published weights, of
vgg19_bn and of Inception: unless their file is given, they are downloaded when first needed.
"""

PROTOCOL_VERSION = 1
