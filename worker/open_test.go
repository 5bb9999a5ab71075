package worker

import (
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// TestOpenAtADrainingNode: the session is another's from the start, and is there before
// its client is sent on: a relay can bring a client to a session, and open none.
func TestOpenAtADrainingNode(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.must(&wire.Command{Kind: &wire.Command_StartJob{StartJob: &wire.StartJob{
		Nonce: fresh(16), Kind: wire.JobKind_JOB_KIND_DRAIN, Worker: "a", By: "operator",
	}}})
	c := w.newClient("s", fresh(32))
	c.serve("a", &wire.ClientFrame{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{
		Session: "s", Secret: c.secret, Nonce: fresh(16), Instance: c.instance,
	}}})
	to := c.next().GetRedirect()
	if row := w.row("s"); to.GetOwner().GetId() != "b" || row.GetOwner().GetWorker() != "b" || to.GetEpoch() != row.GetEpoch() || row.GetEpoch() == 0 {
		t.Fatalf("sent to %v; the session is %v", to, row)
	}
	c.attach("b", true)
	c.attached()
	c.ok(c.write("put", "k=1"), "k")
}
