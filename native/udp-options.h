/* Options of UDP sockets that C libraries older than the kernel's do not name: include/uapi/linux/udp.h. */
#ifndef PODWIRE_UDP_OPTIONS_H
#define PODWIRE_UDP_OPTIONS_H
#include <netinet/udp.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* Linux 4.18: bytes of a datagram, uint16_t, as a control message of sendmsg(2) */
#endif
#ifndef UDP_GRO
#define UDP_GRO 104 /* Linux 5.0: int; as a control message of recvmsg(2) bytes of a datagram */
#endif
#endif
