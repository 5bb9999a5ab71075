package rpcnet

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestAckWanted: the session's reply cache is full, and this client, which asks
// nothing, is asked what it has received.
func TestAckWanted(t *testing.T) {
	wanted := &wire.ServerFrame{Kind: &wire.ServerFrame_AckWanted{AckWanted: &wire.AckWanted{}}}
	s := attached(t)
	s.write("w1")
	s.write("w2")
	s.want(s.frame(1, replyFrame(1, 5, "x")), `answer w1 ok "x"`)
	s.want(s.frame(1, wanted), "send 1 pushes<=0 ack=2")
	s.want(s.frame(1, replyFrame(2, 5, "y")), `answer w2 ok "y"`)
	s.want(s.frame(1, wanted), "send 1 pushes<=0 ack=3")
	s.want(s.frame(1, frozenFrame(9)), "")
	s.want(s.frame(1, wanted), "") // the next owner asks again if it must
}
