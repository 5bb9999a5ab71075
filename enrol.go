package baton

import (
	"context"
	"log/slog"
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// serveEnrol answers a node that has no certificate: by itself if it has the
// authority's key, else a node that has.
func (n *Node) serveEnrol(ctx context.Context, req *wire.EnrolReq) (*wire.EnrolResp, error) {
	if !n.serves.Load() {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the node is starting and has not found its cluster yet: ask again")
	}
	if pki.CanSign(n.cfg.PKI) {
		return n.enrol(ctx, req)
	}
	var silent []string
	for _, w := range n.allWorkers() {
		if w.GetId() == n.id {
			continue
		}
		resp := &wire.EnrolResp{}
		err := rpcnet.Invoke(ctx, n.peers, mgmtAddr(w), callEnrol, req, resp)
		switch wire.CodeOf(err) {
		case wire.Code_NO_AUTHORITY, wire.Code_UNKNOWN_METHOD:
		case wire.Code_UNAVAILABLE:
			silent = append(silent, w.GetName())
		default:
			return resp, err
		}
	}
	return nil, errNoAuthority(silent)
}

// enrol consumes the token in the log and then signs. Who dies in between is asked
// again by the same node, for the same key: that is the same use. The node that
// signs checks the token itself, because the key is not to be at the service of
// every node.
func (n *Node) enrol(ctx context.Context, req *wire.EnrolReq) (*wire.EnrolResp, error) {
	if !pki.CanSign(n.cfg.PKI) {
		return nil, errNoAuthority(nil)
	}
	if string(req.GetClusterId()) != string(n.clusterID()) {
		return nil, wire.Errorf(wire.Code_TOKEN_WRONG_CLUSTER, "the join token is of another cluster of the same authority: make one here with `baton join-token create`")
	}
	if err := pki.CheckRequest(req.GetName(), req.GetHost()); err != nil {
		return nil, err
	}
	key, err := pki.RequestKey(req.GetRequest())
	if err != nil {
		return nil, err
	}
	res, err := n.cluster.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_UseJoinToken{UseJoinToken: &wire.UseJoinToken{
		Id: req.GetToken(), SecretHash: pki.SecretHash(req.GetSecret()), Name: req.GetName(), KeyHash: key,
	}}})
	if err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the log does not answer just now, so the token may be used or not: ask again (%v)", err)
	}
	if code := res[0].GetCode(); code != wire.Code_OK {
		n.cfg.Log.Warn("a node was refused to join", "name", req.GetName(), "host", req.GetHost(), "code", code.Label())
		return nil, tokenError(code)
	}
	cert, err := pki.Sign(n.cfg.PKI, req.GetName(), req.GetHost(), req.GetRequest())
	if err != nil {
		return nil, err
	}
	n.cfg.Log.Info("a node got its certificate by a join token", "name", req.GetName(), "host", req.GetHost(), "again", res[0].GetDuplicate())
	return &wire.EnrolResp{Certificate: cert, ClusterKey: n.identity.Secret()}, nil
}

// EnrolConfig says how a node without a certificate comes by one.
type EnrolConfig struct {
	Token string   // the text that CreateJoinToken returned
	Addrs []string // management addresses of the cluster's nodes
	Name  string   // of the node
	Host  string   // that others reach it at; may be empty
	PKI   string   // directory for its files; it is made if need be
	Log   *slog.Logger
	// Network and Clock default to the operating system's.
	Network seam.Network
	Clock   seam.Clock
}

// Enrolled reports whether the directory holds a certificate for the node already.
func Enrolled(dir, name string) bool { return pki.Enrolled(dir, name) }

// enrolPause is between rounds of asking while no node answers.
const enrolPause = time.Second

// Enrol gets a node the files that Open needs: ca.crt, cluster.key, and a
// certificate for a key that is made here and never leaves. It does nothing where
// Name's certificate is there already. It asks until a node answers or ctx ends.
// Refusals: BAD_REQUEST, WRONG_CLUSTER (before the secret is told), TOKEN_UNKNOWN,
// TOKEN_USED, TOKEN_EXPIRED, TOKEN_REVOKED, TOKEN_WRONG_NAME, TOKEN_WRONG_CLUSTER,
// NAME_IN_USE, NO_AUTHORITY.
func Enrol(ctx context.Context, cfg EnrolConfig) error {
	if pki.Enrolled(cfg.PKI, cfg.Name) {
		return nil
	}
	if cfg.Network == nil {
		cfg.Network = seam.OSNetwork{}
	}
	if cfg.Clock == nil {
		cfg.Clock = seam.OSClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Addrs) == 0 {
		return wire.Errorf(wire.Code_BAD_REQUEST, "no node of the cluster is named: use --join HOST:PORT")
	}
	token, err := pki.ParseJoinToken(cfg.Token)
	if err != nil {
		return err
	}
	if err := pki.CheckRequest(cfg.Name, cfg.Host); err != nil {
		return err
	}
	request, err := pki.Request(cfg.PKI, cfg.Name)
	if err != nil {
		return err
	}
	req := &wire.EnrolReq{ClusterId: token.Cluster[:], Token: token.ID[:], Secret: token.Secret[:], Name: cfg.Name, Host: cfg.Host, Request: request}
	for {
		for _, addr := range cfg.Addrs {
			resp, cs, askErr := rpcnet.Enrol(ctx, cfg.Network, token.EnrolClient(), addr, req)
			if askErr == nil {
				return token.Enrol(cfg.PKI, cfg.Name, cs, resp.GetCertificate(), resp.GetClusterKey())
			}
			if err = askErr; !wire.CodeOf(err).Retryable() {
				return err
			}
			cfg.Log.Warn("could not ask for a certificate, and asks again", "addr", addr, "err", err)
		}
		if seam.Sleep(ctx, cfg.Clock, enrolPause) != nil {
			return err
		}
	}
}
