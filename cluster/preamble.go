package cluster

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// preambleBytesMax bounds a preamble: two ids and a sentence.
const preambleBytesMax = 1024

// writePreamble sends a PeerHello, preceded by its length.
func writePreamble(w io.Writer, h *wire.PeerHello) error {
	body, err := proto.Marshal(h)
	if err != nil {
		return err
	}
	if len(body) > preambleBytesMax {
		return wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a preamble of %d bytes is over the limit of %d", len(body), preambleBytesMax)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// readPreamble reads exactly one PeerHello: what follows belongs to raft.
// Errors: FRAME_TOO_LARGE, BAD_REQUEST for what is no preamble, or r's own.
func readPreamble(r io.Reader) (*wire.PeerHello, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > preambleBytesMax {
		return nil, wire.Errorf(wire.Code_FRAME_TOO_LARGE, "a preamble of %d bytes was announced; at most %d are allowed", n, preambleBytesMax)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	h := &wire.PeerHello{}
	if err := proto.Unmarshal(body, h); err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "not a preamble: %v", err)
	}
	return h, nil
}

// acquaintance is what one side knows when it judges the other's preamble.
type acquaintance struct {
	self      string
	clusterID []byte            // nil: not known yet
	servers   map[string]string // id → address in our raft configuration; empty: none yet
	pledged   []string          // servers of the bootstrap that we pledged to
}

// judge checks the preamble of the node that speaks to us. expect is the id that
// we meant to reach, empty if any will do. Two nodes that both know a cluster id
// must know the same. A node that does not know one yet (its first entry is on
// its way) is trusted only as a server that we already count on: raft itself has
// no cluster id and would merge two clusters.
func (a acquaintance) judge(h *wire.PeerHello, expect string) *wire.Error {
	switch {
	case h.GetVersion() != wire.Version:
		return wire.Errorf(wire.Code_WRONG_VERSION, "this node speaks version %d, the other %d: upgrade the older", wire.Version, h.GetVersion())
	case h.GetNode() == "":
		return wire.Errorf(wire.Code_BAD_REQUEST, "the other side names no node")
	case h.GetNode() == a.self:
		return wire.Errorf(wire.Code_BAD_REQUEST, "node %s speaks to itself: two nodes share an advertised address, or a data directory was copied", a.self)
	case expect != "" && h.GetNode() != expect:
		return wire.Errorf(wire.Code_UNAVAILABLE, "node %s answers where %s was: its disk was replaced, or addresses were swapped", h.GetNode(), expect)
	}
	theirs := h.GetClusterId()
	if len(a.clusterID) > 0 && len(theirs) > 0 {
		if !slices.Equal(a.clusterID, theirs) {
			return wire.Errorf(wire.Code_WRONG_CLUSTER, "this node belongs to cluster %x, the other to %x", a.clusterID, theirs)
		}
		return nil
	}
	if _, known := a.servers[h.GetNode()]; known || slices.Contains(a.pledged, h.GetNode()) {
		return nil
	}
	return wire.Errorf(wire.Code_WRONG_CLUSTER, "node %s is no server of this node's cluster, and the two have no cluster id in common yet", h.GetNode())
}
