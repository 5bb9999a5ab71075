// Package pki is a cluster's own certificate authority in a directory of
// files: it makes them, loads them, and turns them into TLS configurations.
//
//	ca.crt, ca.key        the authority; ca.key is needed only to issue
//	cluster.key           32 random bytes in hex, from which keys are derived
//	NAME.crt, NAME.key    a node
//	admin.crt, admin.key  an operator
//
// A node's host needs ca.crt, cluster.key and its own two files; an operator's
// needs ca.crt, admin.crt and admin.key; a client's needs ca.crt alone.
//
// A node's files are copied to its host, or made there with a JoinToken; the key
// then never leaves the host (Request, Sign, Enrolled).
//
// What a certificate may do stands in its one URI name, baton://node/NAME or
// baton://admin/NAME, and in its key usage. All servers bear the DNS name
// "baton" as well, so that which node a client dials, under which address, is
// never a matter of TLS. Certificates are renewed (Renew) and taken up without a
// restart (Identity.Refresh); they are not revoked, and cluster.key is not rotated:
// an authority whose key leaked is replaced. What is derived for daily use is:
// see Ring.
package pki

import "time"

// ServerName is the DNS name that every node's certificate bears and every
// client verifies.
const ServerName = "baton"

// The protocols that the configurations below treat differently. They are
// rpcnet's, repeated here because this package is a leaf.
const (
	alpnAdmin = "baton-admin/1"
	alpnUser  = "baton/1"
	alpnRelay = "baton-relay/1"
	alpnEnrol = "baton-enrol/1"
)

const (
	// caLife is long because replacing an authority means touching every host.
	caLife = 20 * 365 * 24 * time.Hour
	// leafLife is shorter: a certificate is reissued without a pause.
	leafLife = 5 * 365 * 24 * time.Hour
	// backdate lets a host whose clock is up to a day late use a new certificate.
	backdate = 24 * time.Hour
	// clusterKeyBytes is the size of the secret in cluster.key.
	clusterKeyBytes = 32
	// fileBytesMax bounds what is read of any file here; a certificate has one
	// or two kilobytes.
	fileBytesMax = 64 << 10
	// nameBytesMax bounds a node's name: it is a file's name, a label in logs
	// and part of gossip's small messages.
	nameBytesMax = 63
)

// Names of the files.
const (
	caName         = "ca"
	adminName      = "admin"
	clusterKeyFile = "cluster.key"
	certSuffix     = ".crt"
	keySuffix      = ".key"
)

// Role is what a certificate entitles its holder to be.
type Role string

const (
	RoleNone  Role = ""
	RoleNode  Role = "node"
	RoleAdmin Role = "admin"
	// RoleCA is the authority itself; only Show speaks of it.
	RoleCA Role = "ca"
)
