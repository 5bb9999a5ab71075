package baton

import (
	"context"
	"encoding/json"
	"errors"
	"sort"
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// connMovesMax bounds the moves of one connection's sessions that are asked for
// at once: each of them warms a stream of the same client.
const connMovesMax = 32

// ConnectionInfo is a client's connection to a node, or a node's that relays for
// clients.
type ConnectionInfo struct {
	Node    string `json:"node"`
	ID      uint64 `json:"id"` // unique on its node, since the node's start
	Remote  string `json:"remote"`
	ALPN    string `json:"alpn"`
	Relay   bool   `json:"relay"` // the far end is a node that relays for clients
	ZeroRTT bool   `json:"zero_rtt"`
	Resumed bool   `json:"resumed"`
	AgeUS   int64  `json:"age_us"`
	// Sessions are those that it carries, also those that another node owns and
	// this one relays.
	Sessions []string `json:"sessions"`

	RTTUS         uint64 `json:"rtt_us"` // smoothed
	MinRTTUS      uint64 `json:"min_rtt_us"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
	PacketsLost   uint64 `json:"packets_lost"`
}

// ConnectionFilter selects connections.
type ConnectionFilter struct {
	Node    string `json:"node,omitempty"`    // name or id; empty: all
	Session string `json:"session,omitempty"` // that carry this session; empty: all
	Limit   int    `json:"limit,omitempty"`   // 0: 1000
}

// Connections lists the connections of the nodes that can be reached, by node and
// age.
func (a *Admin) Connections(ctx context.Context, f ConnectionFilter) ([]ConnectionInfo, error) {
	return ask[[]ConnectionInfo](ctx, a, "conns", f)
}

// connMoveReq asks a node to have one connection's sessions moved.
type connMoveReq struct {
	Node string `json:"node"`
	ID   uint64 `json:"id"`
	MigrateRequest
}

// MigrateConnection moves all sessions of a node's connection; req says where to
// and why, and names no session. It returns what became of each, in order, with an
// error that joins those of the moves that failed.
func (a *Admin) MigrateConnection(ctx context.Context, node string, id uint64, req MigrateRequest) ([]MigrationInfo, error) {
	out, err := askOnce[[]MigrationInfo](ctx, a, "regroup", connMoveReq{Node: node, ID: id, MigrateRequest: req})
	if err == nil {
		err = moveFaults(out)
	}
	return out, err
}

// MigrateConnection moves all sessions of one of this node's connections, as
// Connections numbers them; target is as in Migrate. See Admin.MigrateConnection.
func (n *Node) MigrateConnection(ctx context.Context, id uint64, target string) ([]MigrationInfo, error) {
	out, err := n.moveConnection(ctx, connMoveReq{ID: id, MigrateRequest: MigrateRequest{To: target, By: "node " + n.cfg.Name}})
	if err == nil {
		err = moveFaults(out)
	}
	return out, err
}

// Connections lists this node's connections, by age.
func (n *Node) Connections() []ConnectionInfo {
	out := []ConnectionInfo{}
	for _, c := range n.server.ConnList() {
		info := ConnectionInfo{
			Node: n.cfg.Name, ID: c.ID, Remote: c.Remote.String(), ALPN: c.ALPN, Relay: c.Relayed, ZeroRTT: c.ZeroRTT, Resumed: c.Resumed,
			AgeUS: c.Age.Microseconds(), Sessions: c.Sessions,
			RTTUS: c.Stats.GetSmoothedRttUs(), MinRTTUS: c.Stats.GetMinRttUs(),
			BytesSent: c.Stats.GetBytesSent(), BytesReceived: c.Stats.GetBytesReceived(), PacketsLost: c.Stats.GetPacketsLost(),
		}
		if info.Sessions == nil {
			info.Sessions = []string{}
		}
		out = append(out, info)
	}
	return out
}

func (n *Node) listConnections(ctx context.Context, f ConnectionFilter) ([]ConnectionInfo, error) {
	only := ""
	if f.Node != "" {
		w, err := n.workerByName(f.Node)
		if err != nil {
			return nil, err
		}
		only = w.GetId()
	}
	all, silent := gather(ctx, n, callConns, n.Connections)
	if _, answered := all[only]; only != "" && !answered {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "node %s does not answer: its connections are not known", f.Node)
	}
	if len(silent) > 0 {
		n.cfg.Log.Debug("connections of some nodes are not known", "nodes", silent)
	}
	out := []ConnectionInfo{}
	for id, list := range all {
		if only != "" && id != only {
			continue
		}
		for _, c := range list {
			if at := sort.SearchStrings(c.Sessions, f.Session); f.Session == "" || at < len(c.Sessions) && c.Sessions[at] == f.Session {
				out = append(out, c)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Node < out[j].Node || out[i].Node == out[j].Node && out[i].ID < out[j].ID
	})
	return out[:min(len(out), SessionFilter{Limit: f.Limit}.limit())], nil
}

// migrateConnection brings the question to the node that has the connection.
func (n *Node) migrateConnection(ctx context.Context, req connMoveReq) ([]MigrationInfo, error) {
	w, err := n.workerByName(req.Node)
	if err != nil {
		return nil, err
	}
	if w.GetId() == n.id {
		return n.moveConnection(ctx, req)
	}
	body, err := marshal(req)
	if err != nil {
		return nil, err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, forwardTime)
		defer cancel()
	}
	answer, err := n.peers.Call(ctx, mgmtAddr(w), callMoveConn, body)
	if err != nil {
		return nil, err
	}
	var out []MigrationInfo
	return out, json.Unmarshal(answer, &out)
}

// moveConnection asks for the move of every session of a connection, each by
// itself: they may well have different owners and get different targets.
func (n *Node) moveConnection(ctx context.Context, req connMoveReq) ([]MigrationInfo, error) {
	var sessions []string
	found := false
	for _, c := range n.server.ConnList() {
		if c.ID == req.ID {
			found, sessions = true, c.Sessions
		}
	}
	if !found {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "node %s has no connection %d, or not any more: `baton connections` lists them", n.cfg.Name, req.ID)
	}
	if req.Session != "" {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "name a connection or a session, not both")
	}
	out := make([]MigrationInfo, len(sessions))
	places := make(chan struct{}, connMovesMax)
	var wg sync.WaitGroup
	for i, id := range sessions {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			one := req.MigrateRequest
			one.Session = id
			out[i] = n.moveOne(ctx, one)
		})
	}
	wg.Wait()
	return out, nil
}

// moveOne is a move whose refusal is told in its report.
func (n *Node) moveOne(ctx context.Context, req MigrateRequest) (info MigrationInfo) {
	body, err := marshal(req)
	if err == nil {
		body, err = n.forward("migrate")(ctx, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &info)
	}
	code := wire.CodeOf(err)
	if err = noLeader(err); err != nil {
		info = MigrationInfo{Session: req.Session, To: req.To, State: "Failed", Why: err.Error(), Code: wire.CodeOf(err).Label(), Steps: []MigrationStep{}}
		if code == wire.Code_UNAVAILABLE || code == wire.Code_DEADLINE_EXCEEDED {
			info.State = "Unknown" // the leader may have moved it before it fell silent
		}
	}
	return info
}

// moveFaults joins what kept moves from completing.
func moveFaults(list []MigrationInfo) error {
	var faults []error
	for _, m := range list {
		if m.Code != "" {
			code, _ := wire.CodeNamed(m.Code)
			faults = append(faults, &wire.Error{Code: code, Message: m.Session + ": " + m.Why})
		}
	}
	return errors.Join(faults...)
}
