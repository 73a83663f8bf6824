package replication

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
)

// federationView is what multi-region mode adds to a node's health and to the
// cluster's status. write_region is empty where all regions accept writes.
type federationView struct {
	Region      string       `json:"region"`
	WriteRegion string       `json:"write_region"`
	RegionEpoch uint64       `json:"region_epoch"`
	Regions     []regionView `json:"regions"`
}

type regionView struct {
	Region     string  `json:"id"`
	Address    string  `json:"address"`
	Healthy    bool    `json:"healthy"`
	State      string  `json:"state"`
	LagEntries uint64  `json:"lag"`
	LagSeconds float64 `json:"lag_seconds"`
}

func viewFederation(f *FederationHealth) *federationView {
	if f == nil {
		return nil
	}
	v := &federationView{Region: f.Region, WriteRegion: f.Epoch.Owner, RegionEpoch: f.Epoch.Number, Regions: []regionView{}}
	for _, r := range f.Regions {
		v.Regions = append(v.Regions, regionView(r))
	}
	return v
}

// conflicts lists a page: field, node, after and limit are query parameters.
// next is the key to go on after; it is missing on the last page.
func (h *httpHandler) conflicts(w http.ResponseWriter, r *http.Request) {
	c, ok := h.r.(ConflictResolver)
	if !ok {
		WriteHTTPError(w, errNoAbility)
		return
	}
	q := r.URL.Query()
	f := ConflictFilter{Field: q.Get("field"), Node: q.Get("node"), After: q.Get("after"), Limit: 100}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			WriteHTTPError(w, fmt.Errorf("%w: limit=%q; allowed: 1 to 10000", ErrInvalidCommand, text))
			return
		}
		f.Limit = min(n, 10_000)
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.opts.Timeout)
	defer cancel()
	list, err := c.Conflicts(ctx, f)
	if err != nil {
		WriteHTTPError(w, err)
		return
	}
	page := map[string]any{"conflicts": append([]Conflict{}, list...)}
	if len(list) == f.Limit {
		page["next"] = list[len(list)-1].Key
	}
	WriteHTTPJSON(w, http.StatusOK, page)
}

func (h *httpHandler) resolve(ctx context.Context, key string, q *Resolution) error {
	if c, ok := h.r.(ConflictResolver); ok {
		return c.Resolve(ctx, key, *q)
	}
	return errNoAbility
}

type removeRegionRequest struct {
	RegionID string `json:"region_id"`
}

// removeRegion is a later step of multi-region mode.
func (h *httpHandler) removeRegion(context.Context, *removeRegionRequest) error {
	if _, ok := h.r.(RegionPromoter); ok {
		return fmt.Errorf("%w: regions cannot be removed yet", ErrUnsupported)
	}
	return errNoAbility
}

func (h *httpHandler) promoteRegion(ctx context.Context, _ *struct{}) error {
	if p, ok := h.r.(RegionPromoter); ok {
		return p.PromoteRegion(ctx)
	}
	return errNoAbility
}

func (h *httpHandler) regionSettings(w http.ResponseWriter, _ *http.Request) {
	c, ok := h.r.(RegionConfigurer)
	if !ok {
		WriteHTTPError(w, errNoAbility)
		return
	}
	s, err := c.RegionSettings()
	if err != nil {
		WriteHTTPError(w, err)
		return
	}
	WriteHTTPJSON(w, http.StatusOK, s)
}

func (h *httpHandler) changeRegionSettings(ctx context.Context, q *RegionSettingsChange) error {
	if c, ok := h.r.(RegionConfigurer); ok {
		return c.ChangeRegionSettings(ctx, q)
	}
	return errNoAbility
}
