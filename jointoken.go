package baton

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// JoinTokenLife is how long a join token is good for where nothing is said, and
// JoinTokenLifeMax at most.
const (
	JoinTokenLife    = time.Hour
	JoinTokenLifeMax = wire.JoinTokenLifeUSMax * time.Microsecond
)

// JoinTokenRequest asks for a token.
type JoinTokenRequest struct {
	Life time.Duration // 0: JoinTokenLife
	Name string        // of the only node that may use it; empty: any
	By   string
}

// JoinTokenInfo is a join token without its secret.
type JoinTokenInfo struct {
	ID string `json:"id"`
	// State is pending, used, expired or revoked.
	State string `json:"state"`
	Name  string `json:"name"`    // of the only node that may use it; empty: any
	Node  string `json:"used_by"` // name of the node that used it
	By    string `json:"by"`
	// At is when it was made.
	At time.Time `json:"at"`
	// ExpiresInUS is in log time, which stands still while there is no leader.
	ExpiresInUS int64 `json:"expires_in_us"`
}

// joinTokenReq is CreateJoinToken's and RevokeJoinToken's on the wire: the secret
// stays with the operator.
type joinTokenReq struct {
	ID         []byte `json:"id"`
	SecretHash []byte `json:"secret_hash"`
	LifeUS     uint64 `json:"life_us"`
	Name       string `json:"name"`
	By         string `json:"by"`
}

type joinTokenResp struct {
	Cluster []byte        `json:"cluster"`
	Token   JoinTokenInfo `json:"token"`
}

// CreateJoinToken makes a token with which one node gets its certificate when it
// joins (see Enrol), and returns its text: a secret. Errors: BAD_REQUEST,
// NAME_IN_USE, TOO_MANY, NO_AUTHORITY (no node could issue the certificate), UNAVAILABLE
// (nor can a node that answers).
func (a *Admin) CreateJoinToken(ctx context.Context, req JoinTokenRequest) (text string, info JoinTokenInfo, err error) {
	if req.Life == 0 {
		req.Life = JoinTokenLife
	}
	if req.Life < time.Second || req.Life > JoinTokenLifeMax {
		return "", info, wire.Errorf(wire.Code_BAD_REQUEST, "a join token lives from 1s to %v, not %v", JoinTokenLifeMax, req.Life)
	}
	if req.By == "" {
		req.By = "operator"
	}
	token := a.id.NewJoinToken()
	resp, err := ask[joinTokenResp](ctx, a, "join-token-create", joinTokenReq{
		ID: token.ID[:], SecretHash: token.SecretHash(), LifeUS: uint64(req.Life.Microseconds()), Name: req.Name, By: req.By,
	})
	if err != nil {
		return "", info, err
	}
	copy(token.Cluster[:], resp.Cluster)
	return token.Text(), resp.Token, nil
}

// JoinTokens lists the tokens on record: those that are pending, and for a day the
// others.
func (a *Admin) JoinTokens(ctx context.Context) ([]JoinTokenInfo, error) {
	return ask[[]JoinTokenInfo](ctx, a, "join-tokens", struct{}{})
}

// RevokeJoinToken makes a token useless. TOKEN_USED: it is too late; TOKEN_UNKNOWN.
func (a *Admin) RevokeJoinToken(ctx context.Context, id string) (JoinTokenInfo, error) {
	raw, err := hex.DecodeString(id)
	if err != nil {
		return JoinTokenInfo{}, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no token's id: `baton join-token list` has them", id)
	}
	resp, err := ask[joinTokenResp](ctx, a, "join-token-revoke", joinTokenReq{ID: raw})
	return resp.Token, err
}

// createJoinToken is the leader's.
func (n *Node) createJoinToken(ctx context.Context, req joinTokenReq) (joinTokenResp, error) {
	if req.Name != "" {
		if err := pki.CheckRequest(req.Name, ""); err != nil {
			return joinTokenResp{}, err
		}
		if w, err := n.workerByName(req.Name); err == nil && w.GetState() != wire.WorkerState_WORKER_STATE_FENCED {
			return joinTokenResp{}, wire.Errorf(wire.Code_NAME_IN_USE, "there is a node %s: choose another name", req.Name)
		}
	}
	if locals, silent := gather(ctx, n, callLocal, n.local); !anySigns(locals) {
		return joinTokenResp{}, errNoAuthority(silent)
	}
	return n.tokenCommand(ctx, req.ID, &wire.Command{Kind: &wire.Command_MakeJoinToken{MakeJoinToken: &wire.MakeJoinToken{
		Id: req.ID, SecretHash: req.SecretHash, LifeUs: req.LifeUS, Name: req.Name, By: req.By,
	}}})
}

func anySigns(locals map[string]localStatus) bool {
	for _, l := range locals {
		if l.Signs {
			return true
		}
	}
	return false
}

// errNoAuthority: none of the nodes that answer can issue a certificate. One of the silent
// ones may be able to, so the last word is spoken when there are none.
func errNoAuthority(silent []string) error {
	const mend = "put ca.key into the --pki directory of one node, or issue the certificate with `baton pki issue`"
	if len(silent) > 0 {
		return wire.Errorf(wire.Code_UNAVAILABLE, "no node that answers has the authority's key, and %s do not answer: ask again when they do, or "+mend, strings.Join(silent, ", "))
	}
	return wire.Errorf(wire.Code_NO_AUTHORITY, "no node has the authority's key: "+mend)
}

// revokeJoinToken is the leader's.
func (n *Node) revokeJoinToken(ctx context.Context, req joinTokenReq) (joinTokenResp, error) {
	return n.tokenCommand(ctx, req.ID, &wire.Command{Kind: &wire.Command_RevokeJoinToken{RevokeJoinToken: &wire.RevokeJoinToken{Id: req.ID}}})
}

// tokenCommand commits c and tells of the token.
func (n *Node) tokenCommand(ctx context.Context, id []byte, c *wire.Command) (joinTokenResp, error) {
	res, err := n.cluster.ProposeWait(ctx, c)
	if err != nil {
		return joinTokenResp{}, err
	}
	if code := res[0].GetCode(); code != wire.Code_OK {
		return joinTokenResp{}, tokenError(code)
	}
	if err := n.applied(ctx); err != nil {
		return joinTokenResp{}, err
	}
	for _, t := range n.joinTokens() {
		if t.ID == hex.EncodeToString(id) {
			return joinTokenResp{Cluster: n.clusterID(), Token: t}, nil
		}
	}
	return joinTokenResp{}, wire.Errorf(wire.Code_TOKEN_UNKNOWN, "the token has come and gone")
}

// joinTokens is what is applied here.
func (n *Node) joinTokens() []JoinTokenInfo {
	out := []JoinTokenInfo{}
	now := n.cluster.LogTimeUS()
	var rows []*wire.JoinToken
	n.cluster.FSM().View(func(st *store.Store) { rows = st.JoinTokens() })
	for _, t := range rows {
		info := JoinTokenInfo{
			ID: hex.EncodeToString(t.GetId()), State: "pending", Name: t.GetName(), Node: t.GetUsedBy(), By: t.GetBy(),
			At: time.UnixMicro(t.GetWallUs()).UTC(), ExpiresInUS: int64(t.GetExpiresUs() - min(now, t.GetExpiresUs())),
		}
		switch {
		case t.GetRevoked():
			info.State = "revoked"
		case t.GetUsedUs() != 0:
			info.State = "used"
		case info.ExpiresInUS == 0:
			info.State = "expired"
		}
		out = append(out, info)
	}
	return out
}

// tokenError says what to do about a refusal by the log.
func tokenError(code wire.Code) error {
	what := map[wire.Code]string{
		wire.Code_TOKEN_UNKNOWN:    "the cluster knows no such join token: it was forged, or ended more than a day ago; make another with `baton join-token create`",
		wire.Code_TOKEN_USED:       "the join token was used already, and is good for one node: make another with `baton join-token create`",
		wire.Code_TOKEN_EXPIRED:    "the join token's time is over: make another with `baton join-token create`",
		wire.Code_TOKEN_REVOKED:    "the join token was revoked: make another with `baton join-token create`",
		wire.Code_TOKEN_WRONG_NAME: "the join token is for a node of another name: give the node that name, or make another token",
		wire.Code_NAME_IN_USE:      "a node of that name is there, or joined with a token just now: choose another --name",
		wire.Code_TOO_MANY:         "too many join tokens are on record: they are forgotten a day after their end",
		wire.Code_BAD_REQUEST:      "the request cannot be used",
	}
	return wire.Errorf(code, "%s", what[code])
}
