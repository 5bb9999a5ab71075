package membership

import (
	"sync"
)

// rejoinAtOnce bounds the peers dialled at once: those that are cut off each
// take a timeout, and must not make the others wait for all of them.
const rejoinAtOnce = 4

// SetPeers names where to find the other nodes (management addresses, from the
// Raft configuration). From now on those that gossip does not hold for alive
// are redialled, every few seconds: after a partition longer than its memory of
// the dead, memberlist alone would never find them again. peers must be quick
// and must not call Members.
func (m *Members) SetPeers(peers func() []string) {
	m.mu.Lock()
	m.peers = peers
	m.mu.Unlock()
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// rejoinLoop also makes known what the node learns of itself.
func (m *Members) rejoinLoop() {
	defer m.wg.Done()
	tick := make(chan struct{}, 1)
	for {
		timer := m.cfg.Clock.AfterFunc(m.cfg.Profile.RejoinEvery, func() { tick <- struct{}{} })
		select {
		case <-m.ctx.Done():
			timer.Stop()
			return
		case <-m.poke:
			if !timer.Stop() {
				<-tick
			}
		case <-tick:
		}
		m.announce()
		m.rejoin()
	}
}

// announce renews our meta once the cluster's id is known.
func (m *Members) announce() {
	id := string(m.cfg.ClusterID())
	m.mu.Lock()
	news := id != m.cluster && len(id) <= clusterBytesMax && !m.leaving
	if news {
		m.cluster = id
	}
	m.mu.Unlock()
	if news {
		_ = m.ml.UpdateNode(announceTimeout) // a timeout only means: not yet
	}
}

// rejoin redials the peers that are missing.
func (m *Members) rejoin() {
	m.mu.Lock()
	peers, leaving := m.peers, m.leaving
	m.mu.Unlock()
	if leaving {
		return
	}
	present := map[string]bool{m.cfg.Advertise: true}
	for _, member := range m.table.list() {
		if member.State == Alive || member.State == Suspect {
			present[member.Addr] = true
		}
	}
	var wg sync.WaitGroup
	room := make(chan struct{}, rejoinAtOnce)
	for _, addr := range peers() {
		if present[addr] {
			continue
		}
		present[addr] = true // once each
		room <- struct{}{}
		if m.ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-room }()
			if err := m.joinOne(addr); err != nil {
				m.cfg.Log.Debug("a peer is still missing from gossip", "addr", addr, "err", err)
			} else {
				m.cfg.Log.Info("a peer is back in gossip", "addr", addr)
			}
		})
	}
	wg.Wait()
}
