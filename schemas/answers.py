"""What programs send and are answered, as schemas: /openapi.json is generated from these, and tests hold us to them.

Nothing is read or written through them: an answer is built where it is known, on the shortest way.
"""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields, validate

from schemas.widget import AwardSchema, PointsField, TextField

WHOLE_OR_EMPTY: dict[str, Any] = {"oneOf": [{"type": "integer"}, {"type": "string", "const": ""}]}


class _Exact(Schema):
    class Meta:
        # Nothing else is ever in the answer.
        unknown = RAISE


class ActivitySchema(_Exact):
    """One thing that changed a member's points."""

    when = fields.DateTime(required=True)
    what = fields.String(required=True)
    points = fields.Integer(required=True, metadata={"description": "Negative when they were taken away."})


class CardSchema(_Exact):
    """The sidebar card: one flat object with the same keys, whether the member exists or not."""

    loyalty_status = fields.String(
        required=True,
        validate=validate.OneOf(["Member", "Guest", "Excluded", "Customer not found", "Temporarily unavailable"]),
    )
    points_balance = fields.Raw(required=True, metadata=WHOLE_OR_EMPTY)
    vip_tier_name = fields.String(required=True, metadata={"description": "Empty when none."})
    referral_url = fields.String(required=True, metadata={"description": "An http(s) address; empty when none."})
    store_credit_balance = fields.String(
        required=True, metadata={"pattern": "^(-?[0-9]+\\.[0-9]{2})?$", "example": "25.00"}
    )
    lifetime_points = fields.Raw(required=True, metadata=WHOLE_OR_EMPTY)
    points_expire_at = fields.String(required=True, metadata={"description": "As the program gives it."})
    date_of_birth = fields.String(
        required=True, metadata={"description": "Empty unless the connection is set to show it."}
    )
    recent_activity = fields.List(fields.Nested(ActivitySchema), required=True, validate=validate.Length(max=5))
    as_of = fields.DateTime(required=True, metadata={"description": "When the member was last read, UTC."})
    award_key = fields.String(
        required=True, metadata={"description": "Good for one award of this member; empty when there is nobody."}
    )


class AwardRequestSchema(AwardSchema):
    """An award: points, or store credit where the connection allows it."""

    # Either of the two is needed, which the sentence of a refusal says better than a schema.
    points = PointsField(metadata=AwardSchema().fields["points"].metadata)
    store_credit = TextField(
        metadata={
            "oneOf": [{"type": "string", "pattern": "^[0-9]{1,7}([.,][0-9]{1,2})?$"}, {"type": "integer"}],
            "description": "An amount such as 5.00, in place of points.",
        }
    )


class AwardedSchema(_Exact):
    """What became of an award that was accepted."""

    status = fields.String(
        required=True, validate=validate.OneOf(["applied", "already_applied", "being_confirmed", "rejected"])
    )
    message = fields.String(required=True, metadata={"description": "What an agent should read."})
    points_balance = fields.Raw(required=True, metadata={**WHOLE_OR_EMPTY, "description": "As last known."})
    operation_id = fields.String(required=True, metadata={"description": "Stays with the award for ever."})


class RejectedSchema(_Exact):
    """Why nothing was added, or nobody was let in."""

    status = fields.String(required=True, validate=validate.Equal("rejected"))
    reason = fields.String(required=True, metadata={"pattern": "^[a-z0-9_]+$"})
    message = fields.String(required=True, metadata={"description": "What an agent should read."})


class DeliveredSchema(_Exact):
    """How a webhook was taken."""

    status = fields.String(required=True, metadata={"pattern": "^[a-z_]+$"})
    message = fields.String(metadata={"description": "For whoever looks at the delivery, when it was not taken."})
