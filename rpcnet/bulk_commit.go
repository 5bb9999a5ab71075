package rpcnet

import (
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// gotCommit makes the call that a handler has asked for, once; the owner asks
// again when the stream has a new link.
func (b *ByteStream) gotCommit(m *wire.StreamCommit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil || proto.Equal(b.commit, m) {
		return
	}
	b.commit = m
	b.r.client.wg.Go(func() { b.callCommit(m) })
}

// callCommit calls until there is an outcome, which the owner learns by itself. An
// attempt that was given up is settled, so another one does no harm: where the
// first took effect, nobody waits for the second.
func (b *ByteStream) callCommit(m *wire.StreamCommit) {
	payload, err := proto.Marshal(m)
	for err == nil && b.ctx.Err() == nil && b.wants(m) {
		if _, err = b.r.self.Call(b.ctx, wire.StreamCommitMethod, payload); wire.CodeOf(err) == wire.Code_DEADLINE_EXCEEDED {
			err = nil
			continue
		}
		return
	}
}

// wants reports whether no later commit was asked for.
func (b *ByteStream) wants(m *wire.StreamCommit) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.commit == m
}
