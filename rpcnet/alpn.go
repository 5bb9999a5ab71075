package rpcnet

// The protocols that a TLS handshake may choose (RFC 7301). One port number
// carries all of the management plane; the ALPN says which part of it a
// connection is for. A number at the end rises with an incompatible change, so
// that a peer that does not know it is refused in the handshake.
const (
	// ALPNRaft carries hashicorp/raft's own transport.
	ALPNRaft = "baton-raft/1"
	// ALPNGossip carries memberlist's streams (its packets go by UDP).
	ALPNGossip = "baton-gossip/1"
	// ALPNPeer carries node-to-node calls (wire.PeerFrame).
	ALPNPeer = "baton-peer/1"
	// ALPNAdmin carries an operator's calls, in the same frames.
	ALPNAdmin = "baton-admin/1"
	// ALPNEnrol carries one request of a node that has no certificate yet.
	ALPNEnrol = "baton-enrol/1"
	// ALPNUser carries clients' sessions, over QUIC.
	ALPNUser = "baton/1"
	// ALPNRelay carries sessions that a node relays to their owner, over QUIC.
	ALPNRelay = "baton-relay/1"
)
