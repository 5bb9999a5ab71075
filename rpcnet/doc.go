// Package rpcnet moves frames between processes. It has two planes.
//
// The user plane is QUIC. Server accepts clients and gives each session stream to
// a callback; Server.Relay forwards one to another node. Client and Session are
// the other end: they find a session's owner, follow it from node to node, and
// make each request take effect once. What they decide, they decide in core
// (requests.go, route.go), which does no IO; Session only carries it out.
//
// The management plane is TLS over TCP: Mgmt hands connections out by protocol,
// and Peers carries calls between nodes, and from an operator.
//
// The package knows frames and nothing of what they mean at the server: it never
// decides who owns a session, and imports neither the state machine nor the log.
package rpcnet
