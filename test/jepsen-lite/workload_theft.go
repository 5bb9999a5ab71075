package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/wire"

	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
)

// Theft: somebody who has no right to a session tries to get at it, with wrong
// secrets, and with the tokens of moves: made up, of other sessions, at other
// nodes than they are for, and after their move has ended. The thief speaks the
// protocol by itself, as the client library would not do such things.

const (
	theftLimit = 2 * time.Second
	frameMax   = 1 << 20
)

// thief dials one node after the other from a client host.
type thief struct {
	c    *cluster
	host int
}

// attach sends req as the first frame of a stream at node i and returns the first
// frame that comes back, and the stream that goes on.
func (t *thief) attach(ctx context.Context, i int, req *wire.AttachReq) (*wire.ServerFrame, *quic.Stream, func(), error) {
	conf, err := pki.LoadClient(t.c.pki)
	if err != nil {
		return nil, nil, nil, err
	}
	conf.NextProtos = []string{rpcnet.ALPNUser}
	conn, err := t.c.network(t.host).ListenPacket("")
	if err != nil {
		return nil, nil, nil, err
	}
	addr, err := net.ResolveUDPAddr("udp", t.c.mesh.PublicUser(i))
	if err != nil {
		return nil, nil, nil, err
	}
	tr := &quic.Transport{Conn: conn}
	leave := func() { _ = tr.Close(); _ = conn.Close() }
	qc, err := tr.Dial(ctx, addr, conf, &quic.Config{MaxIdleTimeout: theftLimit})
	if err != nil {
		leave()
		return nil, nil, nil, err
	}
	end := leave
	leave = func() { _ = qc.CloseWithError(0, ""); end() }
	st, err := qc.OpenStreamSync(ctx)
	if err != nil {
		leave()
		return nil, nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = st.SetDeadline(deadline)
	}
	req.Version = wire.Version
	b, err := rpcnet.AppendFrame(nil, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: req}}, frameMax)
	if err == nil {
		_, err = st.Write(b)
	}
	var f *wire.ServerFrame
	if err == nil {
		f, err = readFrame(st)
	}
	if err != nil {
		leave()
		return nil, nil, nil, err
	}
	return f, st, leave, nil
}

func readFrame(st *quic.Stream) (*wire.ServerFrame, error) {
	b, err := rpcnet.ReadFrame(st, frameMax, nil)
	if err != nil {
		return nil, err
	}
	f := &wire.ServerFrame{}
	return f, proto.Unmarshal(b, f)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = crand.Read(b)
	return b
}

// steal tries once, and complains if it works.
func (n *lane) steal(t *thief, node int, what string, req *wire.AttachReq) {
	ctx, cancel := context.WithTimeout(context.Background(), theftLimit)
	defer cancel()
	req.Instance, req.Fresh = random(wire.IDBytes), true
	f, st, leave, err := t.attach(ctx, node, req)
	answer := "no answer"
	if err == nil {
		defer leave()
		if f.GetWarm() != nil {
			// It waits for the move's outcome: a node may learn late that it has ended.
			what += ", warm"
			if f, err = readFrame(st); err != nil {
				f = &wire.ServerFrame{Kind: &wire.ServerFrame_Bye{Bye: &wire.Bye{Code: wire.Code_DEADLINE_EXCEEDED}}}
			}
		}
		switch k := f.GetKind().(type) {
		case *wire.ServerFrame_Bye:
			answer = k.Bye.GetCode().Label()
		case *wire.ServerFrame_Redirect:
			answer = "redirect" // to where the session is: no secret
		case *wire.ServerFrame_Bounced:
			answer = "bounced " + k.Bounced.GetCode().Label()
		default:
			answer = fmt.Sprintf("%T", k)
			n.load.complain("theft", n.id, fmt.Sprintf("%s at %s was answered by %v", what, mesh.Node(node), f))
		}
	}
	n.load.count(func(t *tally) { t.Thefts[what+": "+answer]++ })
}

// tempt has a thief try all it can think of on the lane's session.
func (n *lane) tempt(s *baton.Session, rng *rand.Rand) {
	t := &thief{n.load.cluster, n.home}
	at := func() int { return rng.IntN(t.c.n) }
	wrong := bytes.Clone(n.secret)
	wrong[rng.IntN(len(wrong))] ^= 1 << rng.IntN(8)
	n.steal(t, at(), "another secret", &wire.AttachReq{Session: n.id, Secret: wrong})
	n.steal(t, at(), "a secret of none", &wire.AttachReq{Session: n.id, Secret: random(wire.SecretBytes)})
	n.steal(t, at(), "no secret", &wire.AttachReq{Session: n.id})
	n.steal(t, at(), "a secret cut short", &wire.AttachReq{Session: n.id, Secret: n.secret[:len(n.secret)-1]})
	n.steal(t, at(), "a token of none", &wire.AttachReq{Session: n.id, Token: random(wire.SecretBytes), Migration: uint64(1 + rng.IntN(1000))})
	n.steal(t, at(), "standing by", &wire.AttachReq{Session: n.id, Secret: wrong, Standby: true})
	n.intercept(t, s, rng)
}

// intercept steals the token of a move: a second client of ours, the victim,
// attaches to a session of its own, which is moved. The thief shows the token where
// it is not for, while the move waits for the victim, and where it is for once the
// move has ended without it.
func (n *lane) intercept(t *thief, s *baton.Session, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	id := n.id + "-victim"
	secret := bytes.Clone(n.secret)
	victim, err := n.load.clients[n.home].Open(ctx, baton.OpenOptions{ID: id, Secret: secret, TTL: time.Minute})
	if err != nil || victim.Detach(ctx) != nil {
		return
	}
	defer func() {
		again, err := n.load.clients[n.home].Resume(ctx, id, secret)
		if err == nil {
			_ = again.Close(ctx)
		}
	}()
	owner, err := t.c.ownerSaidBy(ctx, t.c.admin, id)
	if err != nil {
		return
	}
	f, st, leave, err := t.attach(ctx, owner, &wire.AttachReq{Session: id, Secret: secret, Instance: random(wire.IDBytes), Fresh: true})
	if err != nil {
		return
	}
	defer leave()
	if f.GetAttached() == nil {
		return // it has moved meanwhile
	}
	target := (owner + 1 + rng.IntN(t.c.n-1)) % t.c.n
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		_, _ = t.c.admin.Migrate(ctx, baton.MigrateRequest{Session: id, To: mesh.Node(target)})
	}()
	for f.GetPivot() == nil {
		if f, err = readFrame(st); err != nil {
			return
		}
	}
	p := f.GetPivot()
	if target, err = t.c.index(p.GetTarget().GetName()); err != nil { // another move may have come first
		return
	}
	token := func(session string) *wire.AttachReq {
		return &wire.AttachReq{Session: session, Token: p.GetToken(), Migration: p.GetMigration(), Epoch: p.GetEpoch()}
	}
	for i := range t.c.n {
		if i != target {
			n.steal(t, i, "a token for another node", token(id))
		}
		n.steal(t, i, "a token for another session", token(s.ID()))
	}
	<-moved // aborted: the victim never came
	n.steal(t, target, "a token of a move that has ended", token(id))
}
