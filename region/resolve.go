package region

import (
	"context"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

var _ replication.ConflictResolver = (*Node)(nil)

// Conflicts implements replication.ConflictResolver: those of the manual
// strategy, as the others settle by themselves.
func (n *Node) Conflicts(_ context.Context, f replication.ConflictFilter) (list []replication.Conflict, err error) {
	filter := conflict.Filter{Field: conflict.Field(f.Field), Node: f.Node, Limit: f.Limit}
	switch filter.Field {
	case "", conflict.FieldNode, conflict.FieldLabels, conflict.FieldProperty, conflict.FieldEdge:
	default:
		return nil, fmt.Errorf("%w: field %q; allowed: node, labels, property, edge", replication.ErrInvalidCommand, f.Field)
	}
	if f.After != "" {
		after, err := conflict.ParseKey(f.After)
		if err != nil {
			return nil, err
		}
		filter.After = &after
	}
	err = n.machine.View(func(m replication.Meta) error {
		found, err := conflict.Conflicts(m, filter)
		for i := range found {
			list = append(list, publicConflict(&found[i]))
		}
		return err
	})
	return list, err
}

func publicConflict(c *conflict.Conflict) replication.Conflict {
	k := c.Key
	p := replication.Conflict{Key: k.String(), Field: string(k.Field), Node: k.Node, Property: k.Property, Type: k.Type, To: k.To}
	for _, v := range c.Versions {
		p.Versions = append(p.Versions, replication.ConflictVersion{VersionID: replication.VersionID(v.VersionID),
			Time: time.UnixMilli(int64(v.WallMS)).UTC(), Deleted: v.Deleted, Value: v.Value, Shown: v.Shown})
	}
	return p
}

// Resolve implements replication.ConflictResolver: by a write through this
// region's log, which replaces all versions that the region has. It can be
// called on any node of the region.
func (n *Node) Resolve(ctx context.Context, key string, r replication.Resolution) error {
	_, err := n.inner.ApplyBatch(ctx, []*replication.Command{{Type: cmdResolve, Data: jsonBody(&resolveRequest{Key: key, Resolution: r})}})
	return err
}

// resolveRequest is the Data of cmdResolve and the body of kindResolve.
type resolveRequest struct {
	Key string
	replication.Resolution
}

// decode checks the request; the error wraps ErrInvalidCommand.
func (r *resolveRequest) decode() (key conflict.Key, res conflict.Resolution, err error) {
	for _, id := range r.Expect {
		res.Expect = append(res.Expect, conflict.VersionID(id))
	}
	if r.Keep != nil {
		keep := conflict.VersionID(*r.Keep)
		res.Keep = &keep
	}
	res.Deleted = r.Deleted
	if key, err = conflict.ParseKey(r.Key); err == nil && len(r.Value) > 0 {
		res.Value, err = replication.DecodeValue(r.Value)
	}
	return key, res, err
}
