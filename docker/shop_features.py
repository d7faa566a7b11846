"""Features of the shop's customers: who they are, and how they bought lately."""

from headrace.features import Entity, FeatureView, Int64, String, Table, col, count, latest, sum_

customer = Entity("customer", join_keys={"customer_id": Int64})

customer_profile = FeatureView(
    "customer_profile",
    entity=customer,
    source=Table("public.customers"),
    entity_key={"customer_id": "id"},
    features=[latest("name", String), latest("city", String)],
)

customer_orders = FeatureView(
    "customer_orders",
    entity=customer,
    source=Table("public.orders"),
    event_time="created_at",
    where=col("status") != "cancelled",
    features=[
        count(over=["1h", "1d", "30d"]),
        sum_("total", over=["1h", "1d", "30d"]),
        latest("status", String, name="last_status"),
    ],
    ttl="90d",
)
